"""``lit-wm record`` from the command line, as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import datamodules.record
from datamodules.experience import ExperienceError
from datamodules.index import read_index
from lit_wm.cli import record
from lit_wm.errors import UserError


def test_record_says_what_it_did_and_what_to_do_next(tmp_path, capsys):
    out = tmp_path / "rooms"
    words = ["--env", "sprites", "--out", str(out), "--steps", "300", "--policy", "scripted", "--seed", "3"]
    record.main(
        [
            *words,
            "--size",
            "32",
            "--env-arg",
            "rooms=true",
            "--env-arg",
            "noise=0.5",
            "--num-envs",
            "2",
            "--codec",
            "npz",
        ]
    )
    said = capsys.readouterr()
    assert "300 steps of sprites" in said.out and f"lit-wm inspect {out}" in said.out
    assert said.err == ""  # no progress bar where there is no terminal
    index = json.loads((out / "index.json").read_text())
    assert index["environment"] == {"id": "sprites", "size": 32, "rooms": True, "noise": 0.5}
    assert (index["codec"], index["policy"], index["seed"]) == ("npz", "scripted", 3)
    with pytest.raises(ExperienceError, match="already holds a recording"):
        record.main(words)
    record.main([*words, "--overwrite"])
    assert json.loads((out / "index.json").read_text())["environment"] == {"id": "sprites"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--env", "sprites"], "--out"),
        (["--env", "sprites", "--out", "x", "--steps", "many"], "--steps: invalid int value: 'many'"),
        (["--env", "sprites", "--out", "x", "--step-size", "3"], "unrecognized arguments: --step-size"),
        (["--env", "sprites", "--out", "x", "--env-arg", "rooms"], "write KEY=VALUE"),
        (["--env", "sprites", "--out", "x", "--size", "32", "--env-arg", "size=64"], "size is given twice"),
        (["--env", "sprites", "--out", "x", "--env-arg", "rooms=maybe"], "rooms is 'maybe', expected bool"),
        (["--env", "sprites", "--out", "x", "--size", "50"], "size 50 is not 32 or 64"),
        (["--env", "sprites", "--out", "x", "--policy", "wise"], "no policy 'wise'"),
        (["--env", "sprites", "--out", "x", "--num-envs", "0"], "num_envs 0"),
        (["--env", "sprites", "--out", "x", "--holdout", "2"], "holdout is 2"),
        (["--env", "nothing", "--out", "x"], "no environment 'nothing'"),
        (["--env", "a:b:c", "--out", "x"], "no environment 'a:b:c'"),
        (["--env", "sprites", "--out", "x", "--if-missing", "--overwrite"], "not allowed with"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, ExperienceError)) as caught:
        record.main(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


WANTED = ["--env", "sprites", "--steps", "300", "--num-envs", "2", "--size", "32", "--env-arg", "length=20"]


@pytest.fixture
def interrupted(monkeypatch):
    """Recording stops after three episodes, as on Ctrl-C."""
    whole = datamodules.record.collect

    def collect(*args):
        yield from islice(whole(*args), 3)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datamodules.record, "collect", collect)
        yield patch


def test_if_missing_records_once_and_says_so(tmp_path, capsys):
    words = [*WANTED, "--out", str(tmp_path / "data"), "--if-missing"]
    record.main(words)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    capsys.readouterr()
    record.main(words)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{tmp_path / 'data'} already holds" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()} == before


OTHERS = [
    ["--steps", "200"],
    ["--steps", "400"],
    ["--seed", "1"],
    ["--policy", "random"],
    ["--env", "CartPole-v1"],
    ["--env-arg", "noise=0.5"],
    ["--num-envs", "3"],
    ["--codec", "npz"],
    ["--holdout", "5"],
]


@pytest.mark.parametrize("other", OTHERS)
def test_if_missing_refuses_a_recording_made_with_other_settings(tmp_path, other):
    out = ["--out", str(tmp_path / "data")]
    record.main([*WANTED, *out])
    before = (tmp_path / "data" / "index.json").read_bytes()
    with pytest.raises(ExperienceError, match=f"{other[-1].partition('=')[0]}.*choose another folder") as error:
        record.main([*WANTED, *out, *other, "--if-missing"])
    assert "\n" not in str(error.value)
    assert (tmp_path / "data" / "index.json").read_bytes() == before


def test_if_missing_takes_an_index_of_before_these_keys(tmp_path, capsys):
    words = [*WANTED, "--out", str(tmp_path / "data")]
    record.main(words)
    path = tmp_path / "data" / "index.json"
    plain = json.loads(path.read_text())
    assert (plain.pop("num_envs"), plain.pop("holdout")) == (2, 10)
    path.write_text(json.dumps(plain))
    record.main([*words, "--if-missing"])
    assert "already holds" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_that_fails_at_play_is_named_with_place_and_options(tmp_path, monkeypatch, where):
    def broken(self, *args, **kwargs):
        raise AttributeError("no\nwindow")

    monkeypatch.setattr(CartPoleEnv, where, broken)
    words = ["--env", "CartPole-v1", "--env-arg", "sutton_barto_reward=true", "--out", str(tmp_path / "data")]
    said = rf"^'CartPole-v1' with sutton_barto_reward=True failed in {where}\(\): AttributeError: no window$"
    with pytest.raises(ExperienceError, match=said):
        record.main(words)


def test_if_missing_replaces_what_an_interrupt_left_of_the_same_recording_only(tmp_path, capsys, interrupted):
    out = ["--out", str(tmp_path / "data")]
    with pytest.raises(KeyboardInterrupt):
        record.main([*WANTED, *out])
    assert "incomplete" in capsys.readouterr().err
    interrupted.undo()
    for other in (["--seed", "1"], ["--steps", "50"]):  # 50 steps are fewer than are there
        with pytest.raises(ExperienceError, match="choose another folder"):
            record.main([*WANTED, *out, *other, "--if-missing"])
    assert not read_index(tmp_path / "data").complete
    record.main([*WANTED, *out, "--if-missing"])
    index = read_index(tmp_path / "data")
    assert index.complete and sum(shard.steps for shard in index.shards) == 300


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("False", False), ("0.5", 0.5), ("null", None), ("up", "up")]
)
def test_option_values_are_json_or_words(word, value):
    assert record.environment_options([f"a={word}"]) == {"a": value}


def test_the_verb_loads_neither_torch_nor_lightning_before_it_records():
    code = "import sys; import lit_wm.cli.record as r, datamodules.record; r.parser(); print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_exit_code_two_and_one_line_through_the_dispatcher(tmp_path):
    command = [sys.executable, "-m", "lit_wm", "record", "--env", "sprite", "--out", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no environment 'sprite'" in done.stderr
