"""Every configuration file loads, is explained in its header, and builds its model."""

import sys
from pathlib import Path

import pytest
import yaml

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.ablation.definition import read_ablation
from lit_wm.ablation.running import Runner
from lit_wm.cli import train

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(p for route in ("dreamer", "genie", "jepa") for p in (ROOT / "configs" / route).glob("*.yaml"))
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "configs" / "machine").glob("*.yaml"))
SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (6,)))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_online(word: str) -> bool:
    """Whether a word of the command line is an experiment whose data come from acting."""
    return Path(word).is_file() and "ReplayDataModule" in Path(word).read_text()


@pytest.fixture
def build(monkeypatch, tmp_path, make_recording):
    """``build(*words)``: all that ``lit-wm fit WORDS`` builds, without the fit."""
    root = make_recording([40] * 8, spec=SPEC, chunk_steps=32)
    monkeypatch.setattr(sys, "argv", ["lit-wm"])
    monkeypatch.setattr(train.TrainCLI, "_run_subcommand", lambda self, verb: None)

    def run(*words: str):
        monkeypatch.delenv(train.RUN_FOLDER, raising=False)
        recorded = [] if any(is_online(word) for word in words) else ["--data.init_args.root", str(root)]
        return train.run(["fit", *words, *recorded, "--runs", str(tmp_path / "runs")])

    return run


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_build(path, build):
    cli = build("--config", str(path))
    assert cli.model.route == path.parent.name
    assert cli.trainer.max_steps > 0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_explain_themselves(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(header)
    assert "Shows:" in text and "Costs:" in text, "what it shows and costs"
    assert ("lit-wm record" in text) != is_online(str(path)), "recorded shards are needed offline alone"
    config = yaml.safe_load(path.read_text())
    assert config["name"] == f"{path.parent.name}_{path.stem}"


@pytest.mark.parametrize("path", ABLATIONS, ids=name)
def test_every_arm_of_every_ablation_builds(path, build, monkeypatch):
    assert path.read_text().startswith("#") and "Shows:" in path.read_text() and "Costs:" in path.read_text()
    monkeypatch.setattr(train, "read_checkpoint", lambda path: None)  # of the preparatory run, which is not there
    for budget in yaml.safe_load(path.read_text())["budgets"]:
        ablation = read_ablation(path, budget, train.config_file)
        runner = Runner(ablation, Path("runs"), judge=lambda *_: {}, threads=1)
        for arm, overrides in (ablation.first | ablation.arms).items():
            words = runner.command(overrides, 0)
            assert words[0] == "fit" and words[3] == "--runs"
            cli = build(*words[1:3], *words[5:])
            assert cli.model.route == ablation.base.parent.name, arm


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_overlays_go_over_every_experiment(path, build):
    overlay = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("#")
    words = ["--trainer.accelerator", "cpu"] if overlay["trainer"]["accelerator"] == "gpu" else []
    for experiment in EXPERIMENTS:
        cli = build("-c", str(experiment), "-c", str(path), *words)
        assert cli.model.route == experiment.parent.name


def test_there_are_experiments_for_every_route_and_world():
    assert {f"{route}/{world}.yaml" for route in ("dreamer", "genie", "jepa") for world in ("pong", "sprites")} <= {
        f"{path.parent.name}/{path.name}" for path in EXPERIMENTS
    }
