"""lit-wm: verbs, help, and mistakes said in one line with exit code 2."""

import errno
import subprocess
import sys

import pytest
from one_line import said

from lit_wm.cli import main as cli
from lit_wm.errors import UserError


def test_help_names_every_verb_and_loads_no_torch():
    script = "import sys; from lit_wm.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(f"\n  {verb} " in done.stdout for verb in cli.VERBS)


def test_record_needs_no_torch():
    script = (
        "import sys, lit_wm.cli.record, datamodules.record; print('torch' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("command", [["lit-wm"], ["lightning"], [sys.executable, "-m", "lit_wm"]])
def test_all_names_of_the_command(command):
    path = (
        [command[0]]
        if command[0] == sys.executable
        else [str(__import__("pathlib").Path(sys.executable).parent / command[0])]
    )
    done = subprocess.run([*path, *command[1:], "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("lit-wm 0.")


def test_unknown_verb(capsys):
    assert "'fitt' is not a verb" in said(capsys, ["fitt"])


def test_debug_shows_the_traceback():
    with pytest.raises(UserError):
        cli.main(["fitt", "--debug"])


def test_inspect_of_nothing(capsys, tmp_path):
    assert "nothing at" in said(capsys, ["inspect", str(tmp_path / "no")])
    assert "holds neither" in said(capsys, ["inspect", str(tmp_path)])


def test_a_full_disk_is_said_in_one_line(capsys, monkeypatch):
    def full(argv):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/last.ckpt")

    monkeypatch.setattr(cli, "run", full)
    assert "runs/x/last.ckpt: No space left on device" in said(capsys, ["fit"])


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(argv):
        raise RuntimeError("ours")

    monkeypatch.setattr(cli, "run", broken)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["fit"])


def test_doctor_and_bench(capsys, tmp_path):
    cli.main(["doctor"])
    assert "torch " in capsys.readouterr().out
    cli.main(["bench", "dreamer", "--batch", "1", "--length", "2", "--runs", "1", "--json", str(tmp_path / "b.json")])
    import json

    result = json.loads((tmp_path / "b.json").read_text())
    assert result["parameters"] == 686_456 and len(result["cpu_ms_runs"]) == 1 and result["flops"] > 1e6
    assert result["cpu_ms_min"] <= result["cpu_ms_median"] and 0 < result["share_of_ceiling"] < 2
