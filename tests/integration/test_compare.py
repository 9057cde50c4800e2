"""``lit-wm compare`` on real runs of two routes, and what it refuses."""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from one_line import said

from datamodules.experience import ActionSpace
from datamodules.index import read_index
from lit_wm.cli import compare
from lit_wm.cli.main import main, run
from lit_wm.errors import UserError
from lit_wm.evaluation.settings import Settings
from lit_wm.loading import load_run

JEPA = {"encoder": {"patch": 16, "dim": 16, "depth": 1, "heads": 2}, "predictor": {"dim": 16, "depth": 1, "heads": 2}}
BLOCKS = {"dim": 16, "heads": 2, "ffn": 32}
GENIE = {
    "frames": 12,
    "tokenizer": {**BLOCKS, "patch": 16, "encoder_blocks": 1, "decoder_blocks": 1, "codes": 16, "latent_dim": 4},
    "lam": {**BLOCKS, "patch": 16, "encoder_blocks": 1, "decoder_blocks": 1, "latent_dim": 4},
    "dynamics": {**BLOCKS, "blocks": 1, "sampling_steps": 1, "know_codes": True},
    "order": "joint",
}
GENIE["tokenizer"]["kmeans_start"] = GENIE["lam"]["kmeans_start"] = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recordings of sprites, and runs of two updates: jepa and genie on the first, another jepa on the second."""
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("data", 0), ("other", 1)):
        options = ["--env-arg", "size=32", "--env-arg", "length=40", "--steps", "4000", "--seed", str(seed)]
        run(["record", "--env", "sprites", *options, "--out", str(folder / name)])
    routes = {"jepa": ("lit_wm.jepa.JEPAModule", JEPA), "genie": ("lit_wm.genie.GenieModule", GENIE)}
    for name, route, data in (("jepa", "jepa", "data"), ("genie", "genie", "data"), ("elsewhere", "jepa", "other")):
        class_path, arguments = routes[route]
        config = {
            "seed_everything": 0,
            "name": name,
            "runs": str(folder / "runs"),
            "model": {"class_path": class_path, "init_args": arguments},
            "data": {
                "class_path": "datamodules.episodes.EpisodeDataModule",
                "init_args": {"root": str(folder / data), "batch_size": 2, "clip_length": 4},
            },
            "trainer": {
                "max_steps": 2,
                "accelerator": "cpu",
                "limit_val_batches": 0,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            "checkpoint": {"every_n_train_steps": 1},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        run(["fit", "--config", str(folder / f"{name}.yaml")])
    return folder


@pytest.mark.slow
def test_compare_judges_two_routes_and_one_of_them_twice_alike(folder, monkeypatch, capsys):
    from lit_wm.evaluation import settings

    quick = functools.partial(settings.Settings, decoder_steps=3, draws=50, repeats=1)
    monkeypatch.setattr(settings, "Settings", quick)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    run(["compare", "runs/jepa", "runs/genie", "runs/jepa", "--out", "card", "--clips", "32"])
    said = capsys.readouterr().out
    assert "tensorboard --logdir card/tensorboard" in said and "card/rollouts.gif" in said
    assert "persistence" in said and "…" not in said, "the tables fit a terminal of 80 columns"
    assert {path.name for path in (folder / "card").iterdir()} == {
        "scorecard.json",
        "scorecard.md",
        "rollouts.gif",
        "rollouts.png",
        "codes_genie.png",
        "tensorboard",
    }
    card = json.loads((folder / "card" / "scorecard.json").read_text())
    jepa, genie, again = card["runs"]
    assert [r["name"] for r in card["runs"]] == ["jepa", "genie", "jepa (2)"]
    assert jepa["labels"] == ["frames", "actions"] and genie["labels"] == ["frames"]
    assert jepa["steering"] == "actions" and genie["steering"] == "mapped codes"
    assert jepa["facts"]["frames_seen"] == 2 * 2 * 4 and jepa["facts"]["updates"] == 2
    for tag, number in jepa["numbers"].items():
        if not tag.startswith("cost/"):
            assert number == again["numbers"][tag], tag
    assert genie["numbers"]["codes/effect_ami"]["n"] > 100
    assert genie["numbers"]["delta_psnr/k4/codes"]["n"] == 30 == jepa["numbers"]["delta_psnr/k4/actions_common"]["n"]
    assert genie["numbers"]["control/ceiling_real_frames"]["value"] > 0.9
    assert "decoder" in jepa["numbers"]["psnr_native/k4"]["reason"]
    for judged in card["runs"]:
        assert judged["numbers"]["state_r2_ceiling/k8/task"]["value"] > 0.999
        assert judged["numbers"]["cost/train_step_cpu_ms"]["value"] > 0
        assert judged["numbers"]["cost/parameters"]["value"] > 1000
    splits = card["data"]["splits"]
    assert splits["test"]["clips"] == 30 and splits["test"]["episodes"] == 10, "10 of 100 episodes, 3 clips in each"


def test_runs_of_different_recordings_are_refused_in_one_line(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(folder / "runs/jepa"), str(folder / "runs/elsewhere"), "--out", str(folder / "none")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "jepa and elsewhere were trained on different data (hash" in said
    assert not (folder / "none").exists()


def test_shards_that_are_not_those_of_the_run_are_refused(folder):
    with pytest.raises(UserError, match="are not those that jepa was trained on"):
        run(["compare", str(folder / "runs/jepa"), "--root", str(folder / "other"), "--out", str(folder / "none")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "no run at nowhere"),
        (["nowhere", "--clips", "3"], "--clips is 3, it must be at least 32"),
        (["nowhere", "--clip-count", "3"], "unrecognized arguments"),
    ],
)
def test_bad_words_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        run(["compare", *words])


def moved(folder, home, data):
    """A copy of a run in ``home/runs`` that was trained on what ``data`` says."""
    shutil.copytree(folder / "runs/jepa", home / "runs/jepa")
    config = yaml.safe_load((home / "runs/jepa/config.yaml").read_text())
    config["data"] = data
    (home / "runs/jepa/config.yaml").write_text(yaml.safe_dump(config))
    return str(home / "runs/jepa")


def test_shards_are_looked_for_where_the_run_was_trained_and_then_here(folder, tmp_path, monkeypatch, capsys):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    data = {"class_path": "datamodules.episodes.EpisodeDataModule", "init_args": {"root": "data/sprites"}}
    run = moved(folder, home, data)
    message = "jepa was trained on data/sprites, which is not here: give --root FOLDER"
    assert said(capsys, ["compare", run]) == f"lit-wm: error: {message}"
    for place in (here, home):  # the second goes before the first
        shutil.copytree(folder / "data", place / "data/sprites")
        loaded = load_run(run)
        assert compare.common_data([loaded], ["jepa"], None).root == place / "data/sprites"


def test_a_run_that_was_trained_online_needs_a_root(folder, tmp_path, capsys):
    data = {"class_path": "datamodules.replay.ReplayDataModule", "init_args": {"env": "sprites", "batch_size": 2}}
    run = moved(folder, tmp_path, data | {"init_args": {"env": "sprites", "batch_size": 2, "clip_length": 60}})
    assert "jepa was trained online, on no recording: give --root FOLDER" in said(capsys, ["compare", run])
    online = dataclasses.replace(load_run(run), data_hash=None)
    index = compare.common_data([online], ["jepa"], str(folder / "data"))
    batch = compare.train_batch(online, index)
    assert batch["is_first"].shape == (2, 60) and batch["is_first"][:, 1:].any(), "it goes on from episode to episode"
    online.model.spec = dataclasses.replace(online.model.spec, action=ActionSpace("discrete", (3,)))
    with pytest.raises(UserError, match="are of another environment than jepa: give another --root FOLDER"):
        compare.common_data([online], ["jepa"], str(folder / "data"))


def test_episodes_that_are_too_short_are_told_what_the_scorecard_needs(make_recording):
    index = read_index(make_recording([20, 11, 20] + [20] * 7))
    message = r"at least 12 steps \(4 seen, 8 imagined\), the longest val episode in .*data has 11$"
    with pytest.raises(UserError, match=message):
        compare.draw_clips(index, Settings(), 32)


def fake(name="a", data_hash="x" * 64, size=64, root="r"):
    observations = {"frames": (size, size, 3)}
    return SimpleNamespace(
        name=name,
        data_hash=data_hash,
        config={},
        root=root,
        model=SimpleNamespace(spec=SimpleNamespace(observations=observations)),
    )


def test_other_resolutions_and_unknown_shards_are_refused():
    with pytest.raises(UserError, match=r"a and b see different observations .*64x64x3 and frames 32x32x3"):
        compare.common_data([fake(), fake("b", size=32)], ["a", "b"], None)
    with pytest.raises(UserError, match="a does not say where its shards are: give --root"):
        compare.common_data([fake(root=None)], ["a"], None)


def test_frames_of_all_ranks_are_counted(folder, tmp_path):
    """A checkpoint of two ranks is one with two random states: each rank saw batches of its own."""
    alone = load_run(folder / "runs/jepa")
    checkpoint = torch.load(alone.checkpoint, weights_only=True)
    checkpoint["lit_wm"]["random_state"] *= 2
    torch.save(checkpoint, tmp_path / "last.ckpt")
    two = dataclasses.replace(load_run(tmp_path / "last.ckpt"), config=alone.config)
    assert (alone.ranks, two.ranks) == (1, 2)
    assert compare.facts(alone)["frames_seen"] == 2 * 2 * 4
    assert compare.facts(two)["frames_seen"] == 2 * 2 * 2 * 4


def test_codebooks_of_the_floor_are_started_where_those_of_the_run_were(folder):
    from datamodules.windows import fixed_clips

    clips = fixed_clips(folder / "data", "train", 12, 64)
    genie, jepa = load_run(folder / "runs/genie"), load_run(folder / "runs/jepa")
    floor, again, built = (
        compare.floor_model(genie, clips, 0),
        compare.floor_model(genie, clips, 0),
        genie.fresh_model(0),
    )
    assert not any(module.training for module in floor.modules())

    def lost_by_quantising(model):
        """The share of the latents' variance that their codes do not say."""
        with torch.no_grad():
            z = model.tokenizer.latents(clips["frames"] / 255)
            quantizer = model.tokenizer.quantizer
            return ((z - quantizer.embed(quantizer.encode(z))).square().mean() / z.var((0, 1, 2)).mean()).item()

    assert lost_by_quantising(built) > 0.8 and lost_by_quantising(floor) < 0.4
    assert torch.equal(floor.dynamics.input.codes, again.dynamics.input.codes)
    weights, floor_weights = built.state_dict(), floor.state_dict()
    changed = {name for name in weights if not torch.equal(weights[name], floor_weights[name])}
    parts = {
        f"{part}.{name}"
        for part in ("tokenizer.quantizer", "lam.bottleneck")
        for name in ("codebook", "usage", "sums", "updates")
    }
    assert changed == parts | {"dynamics.input.codes"}, "the weights are those of every floor"
    plain = jepa.fresh_model(0).state_dict()
    assert all(
        torch.equal(value, plain[name]) for name, value in compare.floor_model(jepa, clips, 0).state_dict().items()
    )


def test_names_stay_unique_and_recipes_forget_seed_and_name_alone():
    assert compare.unique_names([fake("a"), fake("b"), fake("a"), fake("a")]) == ["a", "b", "a (2)", "a (3)"]
    base = {"seed_everything": 0, "name": "x", "model": {"init_args": {"lr": 1}}, "data": {"init_args": {"seed": 0}}}
    seed = base | {"seed_everything": 1, "name": "y", "data": {"init_args": {"seed": 1}}}
    assert compare.recipe(base) == compare.recipe(seed)
    assert compare.recipe(base) != compare.recipe(base | {"model": {"init_args": {"lr": 2}}})
