"""What the README says can be done can be done."""

import re
import shlex
from pathlib import Path

import pytest

from lit_wm.cli.main import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "lit_wm").glob("*/README.md"))]
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for line in re.findall(r"^ *(lit-wm .+)$", page.read_text(), re.MULTILINE)
    }
)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_real_verbs_and_real_files(command):
    words = shlex.split(command.rstrip("\\"))
    assert words[1] in VERBS or words[1].startswith("-"), command
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:tests|configs|datamodules|lit_wm|notebooks)/[\w/.]+\.(?:py|yaml|ipynb|md))`", text):
        assert (ROOT / target).exists(), target


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(
        re.findall(
            r"make ([a-z][a-z-]*)",
            " ".join(re.findall(r"`[^`]*`|```.*?```", (ROOT / "README.md").read_text(), re.DOTALL)),
        )
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_route_explains_itself():
    for route in ("dreamer", "genie", "jepa"):
        assert (ROOT / "lit_wm" / route / "README.md").stat().st_size > 1500


def test_the_layout_names_every_folder():
    layout = (ROOT / "README.md").read_text().split("## Layout")[1].split("```")[1]
    folders = {
        path.parent.name for package in ("lit_wm", "datamodules") for path in (ROOT / package).rglob("__init__.py")
    }
    assert not [folder for folder in folders if f"{folder}/" not in layout]
