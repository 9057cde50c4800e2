"""Arrows run one way: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROUTES = ("dreamer", "genie", "jepa")
SHARED = {"checkpoint_file", "contract", "world_model", "distributed", "errors", "nn", "optim", "settings"}
ALLOWED = {
    "checkpoint_file": {"errors"},
    "contract": set(),
    "errors": set(),
    "distributed": set(),
    "nn": {"distributed", "nn"},
    "optim": {"optim"},
    "settings": {"errors"},
    "world_model": SHARED,
    "loading": SHARED,
    "ablation": {"checkpoint_file", "contract", "errors", "evaluation", "ablation"},
    "callbacks": {"checkpoint_file", "contract", "errors", "distributed", "callbacks", "evaluation"},
    "evaluation": {"contract", "errors", "evaluation"},
    "planning": {"contract", "errors", "evaluation", "planning"},
    "play": {"contract", "errors", "evaluation", "play"},
    **{route: SHARED | {route} for route in ROUTES},
}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_files(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", own_files("datamodules"), ids=lambda path: str(path.relative_to(ROOT)))
def test_datamodules_know_nothing_of_lit_wm(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "lit_wm"]


@pytest.mark.parametrize("path", own_files("lit_wm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_inside_lit_wm(path):
    part = path.relative_to(ROOT / "lit_wm").parts[0].removesuffix(".py")
    if part in ("cli", "__init__", "__main__"):
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("lit_wm.")}
    assert used <= ALLOWED[part], f"{path.relative_to(ROOT)} imports {sorted(used - ALLOWED[part])}"


def test_the_contract_is_free_of_lightning():
    assert not [n for n in imports(ROOT / "lit_wm" / "contract.py") if n.split(".")[0] in ("lightning", "datamodules")]


@pytest.mark.parametrize("package", ["lit_wm", "datamodules"])
def test_files_can_be_read_in_one_sitting(package):
    long = {
        str(path.relative_to(ROOT)): lines
        for path in own_files(package)
        if (lines := path.read_text().count("\n")) > 420
    }
    assert not long
