"""fit, validate, test and predict through LightningCLI: interpolation, run folders, resuming, and mistakes."""

import errno
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import lit_wm
from datamodules.episodes import EpisodeDataModule
from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.checkpoint_file import AtomicCheckpointIO
from lit_wm.cli import main as cli
from lit_wm.cli import train
from lit_wm.errors import UserError
from lit_wm.loading import load_run

SPEC = ExperienceSpec({"frames": (64, 64, 3)}, ActionSpace("discrete", (4,)))
SIZES = {"deter": 32, "hidden": 8, "classes": 4, "depth": 2, "units": 8, "stoch": 4}


@pytest.fixture
def home(make_recording, tmp_path, monkeypatch):
    """A folder with a recording and a configuration, in which commands run."""
    make_recording([9, 20, 16, 7, 12, 31, 18, 9, 14, 6, 25, 17], spec=SPEC)
    config = {
        "name": "tiny",
        "model": {
            "class_path": "lit_wm.dreamer.DreamerModule",
            "init_args": {"size_overrides": SIZES, "imagination_length": 3, "warmup_steps": "${data.init_args.batch_size}"},
        },
        "data": {
            "class_path": "datamodules.episodes.EpisodeDataModule",
            "init_args": {"root": "data", "batch_size": 2, "clip_length": 6},
        },
        "trainer": {
            "max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
            "limit_val_batches": 1, "limit_test_batches": 1, "log_every_n_steps": 1,
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-wm"])
    monkeypatch.delenv(train.RUN_FOLDER, raising=False)
    return tmp_path


def parsed(monkeypatch, *words):
    """The configuration as the classes get it, without running."""
    monkeypatch.setattr(train.TrainCLI, "_run_subcommand", lambda self, name: None)
    built = train.run(train.find_configs(["fit", *words]))
    return built.config_init.fit


def test_interpolation_inside_one_file(home, monkeypatch):
    assert parsed(monkeypatch, "-c", "tiny.yaml").model.hparams.warmup_steps == 2


def test_interpolation_sees_an_override_on_the_command_line(home, monkeypatch):
    config = parsed(monkeypatch, "-c", "tiny.yaml", "--data.init_args.batch_size", "5")
    assert config.model.hparams.warmup_steps == 5


@pytest.mark.parametrize(("words", "expected"), [((), 7), (("--data.init_args.batch_size", "9"), 9)])
def test_interpolation_across_files(home, monkeypatch, words, expected):
    (home / "other.yaml").write_text("data: {init_args: {batch_size: 7}}\n")
    config = parsed(monkeypatch, "-c", "tiny.yaml", "-c", "other.yaml", *words)
    assert config.model.hparams.warmup_steps == expected


def test_the_name_of_the_program_is_no_option(home, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c"])  # as under `python -c`
    assert parsed(monkeypatch, "-c", "tiny.yaml").model.hparams.warmup_steps == 2


def test_fit_writes_a_run_that_loads_goes_on_and_is_never_overwritten(home, capsys):
    cli.main(["fit", "-c", "tiny.yaml"])
    run = load_run("runs/tiny")
    assert run.global_step == 3 and run.name == "tiny" and run.root == "data" and run.seed == 0
    weights = torch.cat([p.flatten() for p in lit_wm.load("runs/tiny").parameters()])
    cli.main(["fit", "-c", "tiny.yaml"])  # from scratch again: elsewhere
    assert (home / "runs" / "tiny-2" / "checkpoints" / "last.ckpt").exists()
    again = torch.cat([p.flatten() for p in lit_wm.load("runs/tiny-2").parameters()])
    assert torch.equal(weights, again), "the same seed must give the same weights"
    cli.main(["fit", "-c", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_steps", "5"])
    assert load_run("runs/tiny").global_step == 5 and load_run("runs/tiny-2").global_step == 3
    capsys.readouterr()
    cli.main(["inspect", "runs/tiny"])
    assert "DreamerModule" in capsys.readouterr().out


def test_a_run_goes_on_in_its_own_folder_and_never_in_that_of_another(home, capsys):
    first, second = "runs/tiny/checkpoints/last.ckpt", "runs/tiny-2/checkpoints/last.ckpt"
    cli.main(["fit", "-c", "tiny.yaml"])
    cli.main(["fit", "-c", "tiny.yaml", "--seed_everything", "5"])
    saved = (home / "runs/tiny/config.yaml").read_text()

    def steps(*names):
        return [load_run(f"runs/{name}").global_step for name in names]

    cli.main(["fit", "-c", "runs/tiny-2/config.yaml", "--ckpt_path", "last", "--trainer.max_steps", "4"])
    assert steps("tiny", "tiny-2") == [3, 4] and (home / "runs/tiny/config.yaml").read_text() == saved
    cli.main(["fit", "-c", "tiny.yaml", "--ckpt_path", second, "--trainer.max_steps", "5"])
    assert steps("tiny", "tiny-2") == [3, 5]
    cli.main(["fit", "-c", "tiny.yaml", "--name", "branch", "--ckpt_path", first, "--trainer.max_steps", "6"])
    assert steps("tiny", "branch") == [3, 6]
    cli.main(["fit", "-c", "tiny.yaml", "--name", "branch", "--ckpt_path", first, "--trainer.max_steps", "7"])
    assert steps("tiny", "branch", "branch-2") == [3, 6, 7]
    cli.main(["predict", "-c", "tiny.yaml", "--ckpt_path", second])
    assert (home / "runs/tiny-2/features_test.npz").exists() and not (home / "runs/tiny/features_test.npz").exists()
    cli.main(["fit", "-c", "runs/tiny-2/config.yaml"])  # what was resumed by --ckpt_path: its config makes a new run
    assert steps("tiny-2", "tiny-2-2") == [5, 5]


def test_a_run_without_a_logger_has_its_folder(home):
    cli.main(["fit", "-c", "tiny.yaml", "--trainer.logger", "false"])
    assert load_run("runs/tiny").seed == 0 and not (home / "checkpoints").exists()


def test_the_saved_config_and_checkpoint_serve_the_other_verbs(home):
    cli.main(["fit", "-c", "tiny.yaml"])
    saved = (home / "runs" / "tiny" / "config.yaml").read_text()
    for verb in ("validate", "test", "predict"):
        cli.main([verb, "-c", "runs/tiny/config.yaml", "--ckpt_path", "runs/tiny/checkpoints/last.ckpt"])
    assert (home / "runs" / "tiny" / "config.yaml").read_text() == saved
    written = np.load(home / "runs" / "tiny" / "features_test.npz")
    clips = list(EpisodeDataModule("data", batch_size=2, clip_length=6).test_dataloader())
    expected = lit_wm.load("runs/tiny").predict_step(clips[0], 0)
    np.testing.assert_allclose(written["features"][:2], expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert written["episode"][:2].tolist() == clips[0]["episode"].tolist()
    assert len(written["features"]) == len(written["start"]) == sum(len(batch["start"]) for batch in clips)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.init_args.sizee", "x"], "sizee"),
        (["--trainer.maxsteps", "3"], "; did you mean 'trainer.max_steps'?"),
        (["-c", "typo.yaml"], "'sizee' is not accepted; did you mean 'size'? (in typo.yaml)"),
        (["-c", "group.yaml"], "'modell.class_path'; did you mean 'model'? (in group.yaml)"),
        (["--max_steps", "5"], "unrecognized arguments: --max_steps 5"),
        (["-c", "empty_group.yaml"], "empty_group.yaml: nothing reads the key 'modell'; did you mean 'model'?"),
        (["-c=empty_key.yaml"], "'model.init_args.sizee'; did you mean 'size'?"),
        (
            ["-c", "empty_in_list.yaml"],
            "empty_in_list.yaml: nothing reads the key 'trainer.callbacks.0.init_args.bogus'",
        ),
        (["--trainer.max_steps", "many"], "trainer.max_steps"),
        (["--model.class_path", "lit_wm.dreamer.Nope"], "lit_wm.dreamer.Nope"),
        (["--model.class_path", "torch.nn.Linear"], "torch.nn.Linear"),
        (["--model.init_args.size", "size9m"], "size9m"),
        (["--data.init_args.root", "nowhere"], "lit-wm record"),
        (["--data.init_args.clip_length", "500"], "500"),
        (["-c", "missing.yaml"], "missing.yaml"),
        (["-c", "broken.yaml"], "broken.yaml"),
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt"),
        (["--ckpt_path", "broken.ckpt"], "broken.ckpt"),
        (["--ckpt_path", "empty.ckpt"], "empty.ckpt"),
        (["--ckpt_path", "text.ckpt"], "text.ckpt"),
        (["-c", "ckpt.yaml"], "text.ckpt"),
        (["--ckpt_path", "best"], "no best weights at runs/tiny/checkpoints/best.ckpt"),
        (["--name", "stopped", "--ckpt_path", "last"], "stopped/checkpoints/last.ckpt"),
        (["-c", "list.yaml"], "list.yaml holds no configuration"),
        (["-c", "nowhere.yaml"], "nope.x"),
        (["--seed_everything", "-7"], "seed_everything"),
        (["--trainer.accelerator", "foo"], "foo"),
        (["--trainer.devices", "0"], "devices"),
        (["--trainer.max_steps", "-5"], "max_steps"),
        (["--checkpoint.every_n_train_steps", "-1"], "every_n_train_steps"),
        (["--model.init_args.lr", "-1"], "lr of the dreamer model is -1.0, it must be above 0"),
        (["--model.init_args.horizon", "0"], "horizon"),
        (["--model.init_args.size_overrides", "{deter: 0}"], "deter"),
        (["--data.init_args.without", "[is_terminal]"], "is_terminal"),
        (["--data.init_args.without", "[frames]"], "without"),
        (["--trainer.max_steps", "0"], "trainer.max_steps is 0, it must be at least 1"),
        (["--trainer.precision", "bf16-true"], "use bf16-mixed"),
        (["--trainer.precision", "16-true"], "use bf16-mixed"),
        (["--trainer.accelerator", "tpu"], "torch_xla"),
        (["--trainer.val_check_interval", "5000"], "`val_check_interval` (5000) must be less than or equal"),
        (["-c", "stopping.yaml"], "conditioned on metric `nope` which is not available"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(home, capsys, words, message):
    (home / "broken.yaml").write_text("model: [unclosed\n")
    (home / "broken.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    (home / "empty.ckpt").touch()
    (home / "text.ckpt").write_text("just text")
    (home / "ckpt.yaml").write_text("ckpt_path: text.ckpt\n")
    (home / "list.yaml").write_text("- a\n- b\n")
    (home / "typo.yaml").write_text("model: {init_args: {sizee: size1m}}\n")
    (home / "group.yaml").write_text("modell: {class_path: lit_wm.jepa.JEPAModule}\n")
    (home / "empty_group.yaml").write_text("modell: {}\n")
    callback = "lightning.pytorch.callbacks.LearningRateMonitor"
    (home / "empty_in_list.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: {callback}, init_args: {{bogus: {{}}}}}}]}}\n"
    )
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: nope}}"
    (home / "stopping.yaml").write_text(f"trainer: {{val_check_interval: 1, callbacks: [{stopping}]}}\n")
    (home / "empty_key.yaml").write_text("model: {init_args: {sizee: {}}}\n")
    (home / "nowhere.yaml").write_text("model: {init_args: {lr: '${nope.x}'}}\n")
    (home / "runs/stopped/checkpoints").mkdir(parents=True)
    (home / "runs/stopped/checkpoints/last.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", "tiny.yaml", *words])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-wm: error:")]
    assert stop.value.code == 2 and len(said) == 1 and message in said[0]
    assert "tiny.yaml" not in said[0], "that file is right"
    assert "Weights only" not in said[0], "torch's own words are for its authors"


def test_an_overlay_before_the_experiment_is_told_its_place(home, capsys):
    (home / "overlay.yaml").write_text("data: {init_args: {num_workers: 0}}\n")
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", "overlay.yaml", "-c", "tiny.yaml"])
    assert "(in overlay.yaml; put it after the experiment's file)" in capsys.readouterr().err
    (home / "overlay.yaml").write_text("data: {init_args: {workers: 0}}\n")
    with pytest.raises(SystemExit):
        cli.main(["fit", "-c", "tiny.yaml", "-c", "overlay.yaml"])
    assert capsys.readouterr().err.endswith("(in overlay.yaml)\n"), "its place is right"


def test_our_own_mistakes_keep_their_traceback_and_those_of_a_broken_run_do_not(home, monkeypatch, capsys):
    def fails(message):
        def step(self, batch, batch_idx):
            raise RuntimeError(message)

        return step

    monkeypatch.setattr("lit_wm.world_model.WorldModel.training_step", fails("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        cli.main(["fit", "-c", "tiny.yaml"])
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    monkeypatch.setattr("lit_wm.world_model.WorldModel.training_step", fails(lost))
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", "tiny.yaml"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "another process of this run failed" in said and "gloo" not in said


@pytest.mark.parametrize("dirpath", [None, "elsewhere"])
def test_a_checkpoint_callback_of_ones_own_leaves_the_run_its_folder(home, dirpath):
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": dirpath}}
    (home / "mine.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback], "logger": dirpath is None}}))
    cli.main(["fit", "-c", "tiny.yaml", "-c", "mine.yaml"])
    assert load_run("runs/tiny").seed == 0 and not (home / "config.yaml").exists()


def test_empty_mappings_that_may_be_there(home, monkeypatch):
    (home / "empty.yaml").write_text("model: {init_args: {size_overrides: {}}, dict_kwargs: {}}\n")
    parsed(monkeypatch, "-c", "tiny.yaml", "-c", "empty.yaml")


def test_a_checkpoint_of_another_route_or_of_other_data_is_refused(home, capsys, make_recording):
    cli.main(["fit", "-c", "tiny.yaml"])
    checkpoint = "runs/tiny/checkpoints/last.ckpt"
    jepa = ["--model", "lit_wm.jepa.JEPAModule", "--name", "other"]
    config = yaml.safe_load((home / "tiny.yaml").read_text())
    config["model"] = {"class_path": "lit_wm.jepa.JEPAModule"}
    (home / "jepa.yaml").write_text(yaml.safe_dump(config))
    for words, message in (
        (["-c", "jepa.yaml", *jepa[2:]], "holds a dreamer model, not a jepa model"),
        (["-c", "tiny.yaml", "--data.init_args.root", "elsewhere"], "other data"),
    ):
        make_recording([21] * 8, spec=SPEC, name="elsewhere", overwrite=True)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *words, "--ckpt_path", checkpoint, "--trainer.max_steps", "6"])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_verb_that_needs_a_trained_model_says_so(home, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["test", "-c", "tiny.yaml"])
    assert stop.value.code == 2 and "runs/tiny/checkpoints/last.ckpt" in capsys.readouterr().err


def test_a_checkpoint_of_other_sizes_or_frames_is_refused(home, capsys, make_recording):
    cli.main(["fit", "-c", "tiny.yaml"])
    make_recording([21] * 8, spec=replace(SPEC, observations={"frames": (48, 48, 3)}), name="small")
    for verb, words in (
        ("fit", ["--model.init_args.size_overrides.units", "16"]),
        ("validate", ["--data.init_args.root", "small"]),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "-c", "tiny.yaml", "--ckpt_path", "last", *words])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "in the checkpoint" in said and "here: the checkpoint is of a model" in said


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(home, monkeypatch):
    io, path = AtomicCheckpointIO(), home / "last.ckpt"
    io.save_checkpoint({"a": torch.zeros(3)}, path)
    before, inode = path.read_bytes(), path.stat().st_ino

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.ckpt cannot be written .*No space left.*untouched"):
        io.save_checkpoint({"a": torch.ones(3)}, path)
    assert path.read_bytes() == before and not list(home.glob(".*.part"))
    monkeypatch.undo()
    io.save_checkpoint({"a": torch.ones(3)}, path)
    assert path.stat().st_ino != inode, "replaced, not written over"


def test_frames_of_another_size_are_refused(home, make_recording):
    cli.main(["fit", "-c", "tiny.yaml"])
    model = lit_wm.load("runs/tiny")
    batch = {"frames": torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8), "action": torch.zeros(1, 2, dtype=torch.int64)}
    batch |= {key: torch.zeros(1, 2, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    with pytest.raises(UserError, match=r"3x32x32.*3x64x64"):
        model.check_batch(batch | {"reward": torch.zeros(1, 2)})
