"""Online runs through the command line: fit, go on, play whole episodes, look inside; and mistakes in one line."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import yaml

import lit_wm
from lit_wm.cli import main as cli
from lit_wm.cli import train

SIZES = {"deter": 32, "hidden": 8, "classes": 4, "depth": 2, "units": 8, "stoch": 4, "stages": 3}


class Broken(gymnasium.Env):
    """What an environment may do wrong, by name."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how):
        self.how, self.t = how, 0
        if how == "no key":
            self.observation_space = gymnasium.spaces.Dict({"angle": gymnasium.spaces.Box(-1, 1, (3,), np.float32)})
        if how == "text actions":
            self.action_space = gymnasium.spaces.Text(4)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return {} if self.how == "no key" else np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.how == "dies" and self.t == 5:
            raise OSError("the simulator is gone")
        reward = float("nan") if self.how == "NaN reward" else 1.0
        return np.full(3, self.t / 20, np.float32), reward, self.t == 12, False, {}


gymnasium.register("Broken-v0", entry_point=Broken)


@pytest.fixture
def home(tmp_path, monkeypatch):
    def write(name, env, **env_args):
        config = {
            "name": name,
            "model": {
                "class_path": "DreamerModule",
                "init_args": {"size_overrides": SIZES, "imagination_length": 3, "warmup_steps": 1},
            },
            "data": {
                "class_path": "ReplayDataModule",
                "init_args": {
                    "env": env, "env_args": env_args, "num_envs": 2, "batch_size": 2, "clip_length": 5, "start_after": 8,
                    "capacity": 300, "train_ratio": 4.0, "test_episodes": 4,
                },
            },
            "trainer": {
                "max_steps": 6, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
                "log_every_n_steps": 1,
            },
            "checkpoint": {"every_n_train_steps": 3},
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-wm"])
    monkeypatch.delenv(train.RUN_FOLDER, raising=False)
    return write


def test_fit_go_on_test_and_inspect(home, capsys):
    home("tiny", "sprites", size=32, length=12)
    cli.main(["fit", "-c", "tiny.yaml"])
    cli.main(["fit", "-c", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_steps", "8"])
    cli.main(["test", "-c", "tiny.yaml", "--ckpt_path", "last"])
    report = json.loads(Path("runs/tiny/evaluation.json").read_text())
    assert report["episodes"] == 4 and report["lengths"] == [12] * 4 and report["updates"] == 8
    assert Path("runs/tiny/episode-0.gif").read_bytes().startswith(b"GIF89a")
    assert lit_wm.load("runs/tiny").route == "dreamer"
    cli.main(["inspect", "runs/tiny"])
    cli.main(["inspect", "runs/tiny/episodes"])
    assert "DreamerModule" in capsys.readouterr().out


def test_a_vector_task_of_your_own(home, capsys):
    home("own", "Broken-v0", how="not at all")
    cli.main(["fit", "-c", "own.yaml"])
    cli.main(["test", "-c", "own.yaml", "--ckpt_path", "last"])
    assert "mean return 12.0" in capsys.readouterr().out


def test_an_environment_that_dies_now_and_then_is_counted(home):
    home("dies", "Broken-v0", how="dies")
    cli.main(["fit", "-c", "dies.yaml"])
    from datamodules.shards import iter_episodes

    assert {len(episode["reward"]) for episode in iter_episodes("runs/dies/episodes")} == {5}


@pytest.mark.parametrize(
    ("env", "env_args", "words", "said"),
    [
        ("Broken-v0", {"how": "NaN reward"}, [], "environment 0 delivers a 'reward' that is not finite"),
        ("Broken-v0", {"how": "no key"}, [], "the observation holds no 'angle'"),
        ("Broken-v0", {"how": "text actions"}, [], "is neither discrete, multi-discrete nor a flat box"),
        ("Nowhere-v0", {}, [], "there is no environment 'Nowhere-v0'"),
        ("CartPole-v1", {}, ["--data.init_args.capacity", "5"], "capacity is 5"),
        ("CartPole-v1", {}, ["--data.init_args.ratio", "5"], "ratio"),
        ("CartPole-v1", {}, ["--data.init_args.train_ratio", "0.8"], "train_ratio 0.8 is too low for online_queue"),
        (
            "CartPole-v1",
            {},
            ["--data.init_args.test_videos", "3"],
            "test_videos is 3, but each of 2 environments plays 2",
        ),
        ("sprites", {"size": 32}, ["--model.init_args.size_overrides.stages", "4"], "32x32 does not fit"),
        ("CartPole-v1", {}, ["--model.init_args.kl", "none"], "kl 'none' is not one of balanced, plain"),
    ],
)
def test_mistakes_are_one_line(home, capsys, env, env_args, words, said):
    home("bad", env, **env_args)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", "bad.yaml", *words])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-wm: error")]
    assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]


def test_rewards_that_are_not_finite_are_no_return(home, capsys):
    home("bad", "Broken-v0", how="not at all")
    cli.main(["fit", "-c", "bad.yaml"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["test", "-c", "bad.yaml", "--ckpt_path", "last", "--data.init_args.env_args.how", "NaN reward"])
    assert "delivers a 'reward' that is not finite at step 1" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_there_is_nothing_to_validate_or_predict(home, capsys, verb):
    home("tiny", "CartPole-v1")
    cli.main(["fit", "-c", "tiny.yaml"])
    with pytest.raises(SystemExit):
        cli.main([verb, "-c", "tiny.yaml", "--ckpt_path", "last"])
    assert f"there is nothing to {verb}" in capsys.readouterr().err


def test_best_weights_are_kept_tested_and_not_gone_on_with(home, tmp_path, capsys):
    home("best", "CartPole-v1")
    config = yaml.safe_load(Path("best.yaml").read_text())
    config["data"]["init_args"]["val_episodes"] = 3
    config["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    config["trainer"]["callbacks"] = [
        {"class_path": "lit_wm.callbacks.best.BestWeights", "init_args": {"monitor": "val/return"}}
    ]
    Path("best.yaml").write_text(yaml.safe_dump(config))
    cli.main(["fit", "-c", "best.yaml"])
    cli.main(["test", "-c", "best.yaml", "--ckpt_path", "best"])
    report = json.loads((tmp_path / "runs/best/evaluation.json").read_text())
    assert report["updates"] in (2, 4, 6) and report["episodes"] == 4
    cli.main(["validate", "-c", "best.yaml", "--ckpt_path", "best"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", "best.yaml", "--ckpt_path", "best"])
    assert "holds weights alone" in capsys.readouterr().err
    home("none", "CartPole-v1")
    with pytest.raises(SystemExit):
        cli.main(["test", "-c", "none.yaml", "--ckpt_path", "best"])
    assert "no best weights at runs/none/checkpoints/best.ckpt" in capsys.readouterr().err
