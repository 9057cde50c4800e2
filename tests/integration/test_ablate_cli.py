"""``lit-wm ablate`` from a file to a verdict: real fits, one arm that cannot be built, and what is refused."""

import json

import pytest
import tiny_routes
import torch
import yaml
from one_line import said
from PIL import Image

from lit_wm.cli.main import run

FAST = {"lr": 1e-3, "warmup_steps": 1, "decay": "constant"}
GENIE = {
    "frames": 6,
    "order": "latent_action",
    "tokenizer": tiny_routes.CODER,
    "lam": {**tiny_routes.CODER, "codebook": "ema"},
    "dynamics": {"dim": 16, "heads": 2, "ffn": 16, "blocks": 1},
    **{f"{part}_optimizer": FAST for part in ("tokenizer", "lam", "dynamics")},
}
CLAIM = {"says": "more codes tell more", "source": "nobody", "metric": "codes/effect_accuracy"}
SAID = {
    "question": "How many codes?",
    "base": "base.yaml",
    "budgets": {"quick": {"trainer.max_steps": 2}},
    "arms": {"k8": {}, "k2": {"model.init_args.lam.codes": 2}, "broken": {"model.init_args.lam.heads": 3}},
    "measures": ["codes"],
    "columns": ["codes/effect_accuracy", "codes/used"],
    "claims": [{**CLAIM, "above": "k8", "below": "k2"}, {**CLAIM, "above": "k8", "below": "broken"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A recording, a base configuration and an ablation of it, here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--env-arg", "length=20", "--steps", "600", "--seed", "0", "--out", "data"]
    run(["record", "--env", "sprites", *words])
    data = {"root": "data", "batch_size": 2, "clip_length": 6}
    base = {
        "model": {"class_path": "lit_wm.genie.GenieModule", "init_args": GENIE},
        "data": {"class_path": "datamodules.episodes.EpisodeDataModule", "init_args": data},
        "trainer": {"limit_val_batches": 0, "accelerator": "cpu"},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "codes.yaml").write_text(yaml.safe_dump(SAID, sort_keys=False))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_from_a_file_to_a_verdict(folder, capsys):
    run(["ablate", "codes.yaml", "--seeds", "2", "--jobs", "2"])
    printed = capsys.readouterr().out
    out = folder / "scorecards" / "ablations" / "codes-quick"
    found = json.loads((out / "results.json").read_text())
    for arm, most in (("k8", 8), ("k2", 2)):
        for seed in "01":
            numbers = found["arms"][arm]["runs"][seed]["numbers"]
            assert 1 <= numbers["codes/used"] <= most and 0 <= numbers["codes/effect_accuracy"] <= 1
    assert all("heads" in one["failed"] for one in found["arms"]["broken"]["runs"].values())
    assert found["claims"][0]["verdict"]["seeds"] == 2 and found["claims"][1]["verdict"]["word"] == "not measured"
    table = (out / "table.md").read_text()
    assert table.strip() in printed and "| broken | n/a | n/a | failed failed |" in table
    assert Image.open(out / "plot.png").size[0] > 500
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("runs/ablations/*/checkpoints/last.ckpt")}
    assert len(weights) == 4
    run(["ablate", "codes.yaml", "--seeds", "2"])
    assert capsys.readouterr().out.count("training in") == 2, "the broken arm is tried again, and nothing else"
    again = json.loads((out / "results.json").read_text())
    assert [again["arms"][arm] for arm in ("k8", "k2")] == [found["arms"][arm] for arm in ("k8", "k2")]
    assert again["claims"] == found["claims"]
    assert weights == {path: path.stat().st_mtime_ns for path in weights}
    run(["ablate", "codes.yaml", "--seeds", "3", "--dry_run"])
    commands = capsys.readouterr().out
    assert "5 of 9 runs to train" in commands and commands.count("lit-wm fit --config base.yaml") == 5


def test_all_that_come_with_lit_wm_are_listed_with_what_was_found(folder, capsys):
    found = {"date": "2026-01-01", "budget": "quick", "claims": [{"says": "x", "verdict": {"word": "supported"}}]}
    there = folder / "scorecards" / "ablations" / "genie_codes-quick"
    there.mkdir(parents=True)
    (there / "results.json").write_text(json.dumps(found))
    run(["ablate", "--list"])
    printed = capsys.readouterr().out
    assert "configs/ablations/genie_codes.yaml: What do codes tell" in printed and "supported: x" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give one file, or --list"),
        (["codes.yaml", "--list"], "give one file, or --list"),
        (["codes.yaml", "--seeds", "0"], "--seeds is 0, it must be at least 1"),
        (["codes.yaml", "--jobs", "0"], "--jobs is 0, it must be at least 1"),
        (["codes.yaml", "--budget", "full"], "codes.yaml has no budget 'full': quick"),
        (["code.yaml"], "no configuration file at code.yaml"),
        (["base.yaml"], "base.yaml: nothing reads the key 'data'"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(folder, capsys, words, told):
    assert told in said(capsys, ["ablate", *words])


@pytest.mark.parametrize("words", [[], ["--dry_run"]])
def test_a_misspelt_key_of_an_arm_is_found_before_anything_is_trained(folder, capsys, words):
    arms = {"k8": {}, "k2": {"model.init_args.lam.kodes": 2}, "broken": {}}
    (folder / "codes.yaml").write_text(yaml.safe_dump(SAID | {"arms": arms}, sort_keys=False))
    assert "codes: k2: " in (told := said(capsys, ["ablate", "codes.yaml", *words])) and "kodes" in told
    assert not (folder / "runs").exists()
