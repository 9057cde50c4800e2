"""``lit-wm imitate`` from a recording to a curve, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_routes
import torch
import yaml
from one_line import said
from PIL import Image

from datamodules.experience import ActionSpace, ExperienceSpec
from datamodules.index import read_index
from lit_wm.cli import imitate
from lit_wm.cli.main import run
from lit_wm.errors import UserError
from lit_wm.loading import load_run

POLICY = ["--policy.frames", "2", "--policy.patch", "16", "--policy.dim", "8", "--policy.heads", "2"]
POLICY += ["--policy.ffn", "8", "--policy.blocks", "1", "--policy.hidden", "8"]
TINY = [*POLICY, "--learning.updates", "3", "--learning.batch_size", "2", "--episodes", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An expert of 64 pixels, another of 32, and runs of a few updates: genie and jepa."""
    folder = tmp_path_factory.mktemp("imitate")
    for name, size in (("expert", 64), ("small", 32)):
        words = ["--env-arg", f"size={size}", "--env-arg", "length=10", "--steps", "400", "--policy", "scripted"]
        run(["record", "--env", "sprites", *words, "--out", str(folder / name)])
    for route in ("genie", "jepa"):
        tiny_routes.fit(route, folder / "expert", folder / route, steps=3)
    return folder


def words(folder, *more, route="genie", expert="expert"):
    return ["imitate", str(folder / route), "--expert", str(folder / expert), "--out", str(folder / "out"), *more]


def test_every_seed_of_every_number_is_written_drawn_and_printed(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"labels": [20, 0], "seeds": [0, 3]}))
    run(words(folder, "-c", str(config), *TINY, "--out", "out"))
    printed = capsys.readouterr().out
    assert "n=20" in printed and "oracle" in printed and "…" not in printed
    found = json.loads((tmp_path / "out" / "imitation.json").read_text())
    assert [one["labels"] for one in found["imitation"]] == [0, 20] and found["seeds"] == [0, 3]
    arms = [*found["imitation"], found["oracle"], found["random"], found["expert"]]
    for one in arms:
        assert len(one["by_seed"]) == 2 and one["low_95"] <= one["mean"] <= one["high_95"]
        assert one["mean"] == pytest.approx(sum(one["by_seed"]) / 2)
    assert found["expert"]["mean"] > 0, "in ten steps it reaches some goals"
    assert found["environment"] == {"id": "sprites", "size": 64, "length": 10} and found["unfinished_seeds"] == []
    assert found["learning"]["updates"] == 3 and found["policy"]["dim"] == 8
    assert all(0 <= value <= 1 for value in found["held_out_accuracy"]["codes"]["by_seed"])
    assert Image.open(tmp_path / "out" / "imitation.png").size[0] > 500
    assert sorted(path.name for path in (tmp_path / "out").glob("*.ckpt")) == [
        f"{what}-{seed}.ckpt" for what in ("actions", "codes") for seed in (0, 3)
    ]


def test_a_recording_by_nobody_known_has_no_expert_to_play(folder, tmp_path, capsys):
    shutil.copytree(folder / "expert", tmp_path / "expert")
    change(tmp_path / "expert", policy="Dreamer")
    run(
        words(
            folder, *TINY, "--labels", "5", "--seeds", "0", "--expert", str(tmp_path / "expert"), "--out", str(tmp_path)
        )
    )
    assert "expert: n/a, there is no policy 'Dreamer' for sprites" in capsys.readouterr().out
    found = json.loads((tmp_path / "imitation.json").read_text())
    assert found["expert"]["mean"] is None and "Dreamer" in found["expert"]["reason"]
    assert "low_95" not in found["oracle"], "one seed has no interval"


def change(root, **entries):
    """Write other entries into an index."""
    index = json.loads((root / "index.json").read_text())
    (root / "index.json").write_text(json.dumps(index | entries))


def test_a_run_without_codes_is_refused(folder, capsys):
    assert "this model finds no latent actions" in said(capsys, words(folder, *TINY, "--labels", "5", route="jepa"))


def test_continuous_codes_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setattr("lit_wm.genie.GenieModule.infer_actions", lambda self, batch: torch.zeros(1, 10, 32))
    assert "latent actions are continuous vectors" in said(capsys, words(folder, *TINY, "--labels", "5"))


def test_pictures_of_another_size_are_refused(folder, capsys):
    message = said(capsys, words(folder, *TINY, expert="small"))
    assert "small shows 32x32x3, but genie was trained on 64x64x3" in message


def test_more_labels_than_steps_are_refused(folder, capsys):
    most = sum(steps - 1 for shard in read_index(folder / "expert").of("train") for _, steps in shard.episodes)
    message = said(capsys, words(folder, *TINY, "--labels", "5", str(most + 1)))
    assert f"labels ask for {most + 1} labelled steps, the train split of" in message and f"has {most}" in message
    message = said(capsys, words(folder, *TINY, "--labels", "40", "--most_steps", "15"))
    assert "labels ask for 40 labelled steps, but 20 were read: raise most_steps" in message


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"id": "nowhere"}, "is of an environment that cannot be built: there is no environment 'nowhere'"),
        ({}, "is of an environment that cannot be built"),
        ({"id": "sprites", "size": 32}, "does not look like its environment does now"),
        ({"id": "sprites", "wall": True}, "cannot be built: sprites has no option 'wall'"),
    ],
)
def test_an_environment_that_cannot_be_built_is_refused(folder, tmp_path, capsys, environment, message):
    shutil.copytree(folder / "expert", tmp_path / "expert")
    change(tmp_path / "expert", environment=environment)
    assert message in said(capsys, words(folder, *TINY, "--expert", str(tmp_path / "expert")))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (ActionSpace("discrete", (1,)), "comes without actions"),
        (ActionSpace("continuous", (2,)), "are continuous: the oracle and the dictionary need discrete ones"),
        (ActionSpace("multi_discrete", (2, 3)), "are multi_discrete"),
    ],
)
def test_an_expert_without_actions_to_tell_apart_is_refused(folder, make_recording, space, message):
    root = make_recording([20] * 4, spec=ExperienceSpec({"frames": (64, 64, 3)}, space))
    with pytest.raises(UserError, match=message):
        imitate.check_expert(read_index(root), load_run(folder / "genie"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy.width", "3"], "policy.width"),
        (["--labels", "5", "5"], "labels of the imitation are [5, 5]: give different numbers, none below 0"),
        (["--seeds", "-1"], "seeds of the imitation are [-1]"),
        (["--episodes", "0"], "episodes of the imitation is 0, it must be at least 1"),
        (["--oracle_random", "1.5"], "oracle_random of the imitation is 1.5, it must be at most 1"),
        (["--temperature", "-1"], "temperature of the imitation is -1"),
        (["--precision", "bf16-true"], "precision 'bf16-true' is not one of 32-true, bf16-mixed, 16-mixed"),
        (["--accelerator", "tpu"], "accelerator 'tpu' is not one of cpu, gpu"),
        (["--learning.updates", "0"], "updates of the imitation learning is 0"),
        (["--learning.optimizer.lr", "fast"], "learning.optimizer.lr"),
        (["--labels", "few"], "labels"),
        (["-c", "nowhere.yaml"], "no configuration file at nowhere.yaml"),
    ],
)
def test_bad_words_are_one_line(folder, capsys, options, message):
    assert message in said(capsys, words(folder, *options))


def test_a_misspelt_key_of_a_file_is_named_with_its_file(folder, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("episods: 3\n")
    message = said(capsys, words(folder, "-c", str(tmp_path / "wrong.yaml")))
    assert "episods" in message and "did you mean 'episodes'?" in message and "wrong.yaml" in message


def test_the_installed_configuration_is_read(folder):
    options = imitate.parse(["runs/some", "-c", "configs/imitation/sprites.yaml"])
    assert options.expert == "data/sprites_expert" and options.policy.dim < 512
    assert options.seeds == [0, 1, 2, 3, 4] and options.run == "runs/some"
    header = (Path(__file__).parents[2] / "configs/imitation/sprites.yaml").read_text()
    assert all(word in header for word in ("# Shows:", "# Costs:", "lit-wm record"))
