"""The verbs' parser: a mistake is one line that names the verb and its help."""

import subprocess
import sys

import pytest

from lit_wm.cli import main as cli
from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["inspect"], "inspect: the following arguments are required: path"),
        (["inspect", "a", "--deep"], "inspect: unrecognized arguments: --deep"),
        (["bench"], "bench: "),
        (["bench", "dremer"], "bench: argument route: invalid choice: 'dremer'"),
        (["bench", "jepa", "--runs", "none"], "bench jepa: argument --runs: 'none' is not a positive number"),
        (["doctor", "now"], "doctor: unrecognized arguments: now"),
    ],
)
def test_a_mistake_is_one_line(argv, begins, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1
    assert lines[0].startswith(f"lit-wm: error: {begins}") and lines[0].endswith("--help shows the options")


def test_help_is_still_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "genie", "--help"])
    assert stop.value.code == 0 and "--set" in capsys.readouterr().out


def test_the_parser_raises_for_the_dispatcher():
    with pytest.raises(UserError, match=r"^try: .*--two; lit-wm try --help shows the options$"):
        OneLineArgumentParser(prog="lit-wm try").parse_args(["--two"])


@pytest.mark.parametrize("verb", ["parser", "bench", "inspect", "doctor"])
def test_parsing_loads_no_torch(verb):
    script = f"import sys, lit_wm.cli.{verb}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
