"""Online Dreamer: killed at any moment and resumed, it goes on bit by bit; what it collected trains other runs."""

import csv
import random
import shutil
import signal
import time
from pathlib import Path

import another_process
import pytest
import tiny_online
import tiny_routes
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger

from datamodules.episodes import EpisodeDataModule
from datamodules.experience import ExperienceError
from datamodules.replay import ReplayDataModule
from datamodules.shards import iter_episodes, verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_online.fit(folder, 40)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kill_at", "processes"), [(4, 0), (11, 2), (22, 0), (32, 0)])  # 21 ends an epoch
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, kill_at, processes):
    """Batches, losses, weights, the replay with its latents, environment steps and random numbers after every update."""
    killed = another_process.start(tiny_online.fit, tmp_path, 40, processes=processes, kill_at=kill_at)
    assert another_process.exit_code(killed) == -signal.SIGKILL
    before, expected = tiny_online.seen(tmp_path), tiny_online.seen(whole)
    assert before == expected[:kill_at]
    (tmp_path / "seen-0.jsonl").unlink()
    tiny_online.fit(tmp_path, 40, resume=tmp_path / "checkpoints" / "last.ckpt", processes=processes)
    assert tiny_online.seen(tmp_path) == expected[3 * ((kill_at - 1) // 3) :]
    for name in ("index.json", "train-000000.tar"):
        assert (tmp_path / "episodes" / name).read_bytes() == (whole / "episodes" / name).read_bytes()


def resumed_equals(whole, folder):
    """Go on from the last checkpoint, if any; what is seen from there on is what the uninterrupted run saw."""
    last = folder / "checkpoints" / "last.ckpt"
    (folder / "seen-0.jsonl").unlink(missing_ok=True)
    tiny_online.fit(folder, 40, resume=last if last.exists() else None)
    seen, expected = tiny_online.seen(folder), tiny_online.seen(whole)
    assert len(seen) > 1 and seen == expected[-len(seen) :]
    for name in ("index.json", "train-000000.tar"):
        assert (folder / "episodes" / name).read_bytes() == (whole / "episodes" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(2))
def test_killed_at_a_random_moment(whole, tmp_path, moment):
    """Wherever it is: acting, learning, writing a checkpoint, or not yet begun."""
    running = another_process.start(tiny_online.fit, tmp_path, 40)
    updates, after = random.randrange(1, 30), random.uniform(0, 0.1)
    while running.is_alive() and len(lines_of(tmp_path / "seen-0.jsonl")) < updates:
        time.sleep(0.005)
    time.sleep(after)
    running.kill()
    assert another_process.exit_code(running) == -signal.SIGKILL, f"killed {after:.3f} s after update {updates}"
    resumed_equals(whole, tmp_path)


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("file", [1, 4, 9, 20])
def test_killed_while_the_replay_is_written(whole, tmp_path, file):
    killed = another_process.start(tiny_online.fit_and_die_writing, file, tmp_path, 40)
    assert another_process.exit_code(killed) == -signal.SIGKILL
    resumed_equals(whole, tmp_path)


def test_the_replay_was_bounded_and_its_files_are_those_of_the_last_two_checkpoints(whole):
    last = tiny_online.seen(whole)[-1]
    assert last["env_steps"] > 150 >= last["rows"] > 120
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    (state,) = checkpoint["ReplayDataModule"]["ranks"]
    named = {name for stream in state["replay"]["streams"] for block in stream["blocks"] for name in block[:2]}
    there = {path.name for path in (whole / "replay").iterdir()}
    assert (
        named <= there and len(there) <= 2 * len(named) and not [name for name in there if name.startswith("rows-0-0-")]
    )


def test_what_was_collected_is_a_recording_that_trains_offline(whole):
    index = verify(whole / "episodes")
    assert index.complete and index.environment == {"id": "CartPole-v1"} and index.policy == "DreamerModule"
    assert all(episode["is_last"][-1] for episode in iter_episodes(whole / "episodes"))
    data = EpisodeDataModule(str(whole / "episodes"), batch_size=2, clip_length=5)
    trainer = Trainer(
        accelerator="cpu", max_steps=2, limit_val_batches=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)
    assert trainer.global_step == 2


def test_a_run_begun_from_the_checkpoint_of_another_takes_its_replay_along_and_leaves_it_alone(whole, tmp_path):
    files = {path: path.read_bytes() for path in sorted(whole.rglob("*")) if path.is_file()}
    tiny_online.fit(tmp_path, 43, resume=whole / "checkpoints" / "last.ckpt")
    first = tiny_online.seen(tmp_path)[0]
    assert first["step"] == 41 and first["env_steps"] >= tiny_online.seen(whole)[-1]["env_steps"]
    assert {path: path.read_bytes() for path in sorted(whole.rglob("*")) if path.is_file()} == files
    tiny_online.fit(tmp_path, 44, resume=tmp_path / "checkpoints" / "last.ckpt")  # its own files are complete


def test_a_missing_replay_is_named(tmp_path):
    tiny_online.fit(tmp_path / "run", 6)
    next((tmp_path / "run" / "replay").glob("rows-*")).unlink()
    with pytest.raises(ExperienceError, match=r"rows-.*npz cannot be read"):
        tiny_online.fit(tmp_path / "run", 42, resume=tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    """Its episodes are there, finished or not, and nothing names them."""
    shutil.copytree(whole / "episodes", tmp_path / "episodes")
    tiny_online.fit(tmp_path, 30)
    assert tiny_online.seen(tmp_path) == tiny_online.seen(whole)[:30]
    there, before = verify(tmp_path / "episodes"), verify(whole / "episodes")
    assert 0 < there.splits["train"]["episodes"] < before.splits["train"]["episodes"]


def test_a_replay_of_another_environment_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(ExperienceError, match=r"replay is of CartPole-v1 \{\}, not of CartPole-v0"):
        tiny_online.fit(tmp_path / "run", 42, resume=last, env="CartPole-v0")
    with pytest.raises(ExperienceError, match="another capacity"):
        tiny_online.fit(tmp_path / "run", 42, resume=last, capacity=500)


def test_after_an_exception_what_was_played_is_to_be_seen(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 30:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tiny_online.fit(tmp_path, 40, callbacks=(Stop(),))
    assert verify(tmp_path / "episodes").splits["train"]["episodes"] > 0
    tiny_online.fit(tmp_path, 34, resume=tmp_path / "checkpoints" / "last.ckpt")


def test_a_model_that_cannot_act_is_refused(tmp_path):
    data = ReplayDataModule(env="sprites", num_envs=1)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(ExperienceError, match="JEPAModule cannot act"):
        trainer.fit(tiny_routes.tiny("jepa", data.spec), datamodule=data)


def test_playing_whole_episodes(whole):
    data = tiny_online.data_module(test_episodes=5)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (result,) = trainer.test(
        tiny_routes.tiny("dreamer", data.spec),
        datamodule=data,
        ckpt_path=whole / "checkpoints" / "last.ckpt",
        verbose=False,
    )
    assert 8 <= result["test/return"] == result["test/length"] <= 500
    assert Path(whole / "checkpoints" / "last.ckpt").exists()


def test_checkpoints_of_ones_own_leave_the_run_its_folder_and_keep_their_replay(tmp_path):
    mine = ModelCheckpoint(
        str(tmp_path / "mine" / "checkpoints"), filename="{step}", every_n_train_steps=2, save_top_k=-1
    )
    tiny_online.fit(tmp_path / "run", 8, callbacks=(mine, OnExceptionCheckpoint(str(tmp_path / "oops"))))
    assert (tmp_path / "run" / "episodes" / "index.json").exists() and not (tmp_path / "mine" / "replay").exists()
    there = {path.name for path in (tmp_path / "run" / "replay").iterdir()}
    kept = [*(tmp_path / "mine" / "checkpoints").iterdir(), tmp_path / "run" / "checkpoints" / "last.ckpt"]
    assert len(kept) == 5
    for path in kept:
        (state,) = torch.load(path, weights_only=True)["ReplayDataModule"]["ranks"]
        assert {
            name for stream in state["replay"]["streams"] for block in stream["blocks"] for name in block[:2]
        } <= there
    # and each of them can be gone on with
    tiny_online.fit(tmp_path / "run", 6, resume=tmp_path / "mine" / "checkpoints" / "step=4.ckpt")
    tiny_online.fit(tmp_path / "other", 6, resume=tmp_path / "mine" / "checkpoints" / "step=4.ckpt")
    first = [entry for entry in tiny_online.seen(tmp_path / "run") if entry["step"] in (5, 6)]
    assert first[:2] == first[2:] == tiny_online.seen(tmp_path / "other")


def test_with_a_trainers_defaults_the_replay_lies_beside_its_log(tmp_path):
    def trained(steps, ckpt_path=None):
        trainer = Trainer(
            accelerator="cpu", max_steps=steps, default_root_dir=tmp_path, enable_progress_bar=False,
            enable_model_summary=False, logger=CSVLogger(tmp_path),
            callbacks=[ModelCheckpoint(every_n_train_steps=2)],
        )  # fmt: skip
        data = tiny_online.data_module()
        torch.manual_seed(0)
        trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data, ckpt_path=ckpt_path)
        return trainer

    first = trained(20)
    run = Path(first.log_dir)
    assert list((run / "replay").glob("rows-*")) and (run / "episodes" / "index.json").exists()
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")
    assert trained(22, checkpoint).global_step == 22


def test_a_run_without_any_folder_says_so(tmp_path):
    trainer = Trainer(
        accelerator="cpu", max_steps=2, logger=False, callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=1)],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = tiny_online.data_module()
    with (
        pytest.warns(UserWarning, match="has no folder to keep them in"),
        pytest.raises(ExperienceError, match="no folder for its replay: give the Trainer a logger"),
    ):
        trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)


def test_episodes_may_be_kept_again_after_a_part_that_kept_none(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    tiny_online.fit(tmp_path, 9)
    before = len(list(iter_episodes(tmp_path / "episodes")))
    tiny_online.fit(tmp_path, 15, resume=last, keep_episodes=False)
    tiny_online.fit(tmp_path, 40, resume=last)
    assert len(list(iter_episodes(tmp_path / "episodes"))) > before > 0


def test_how_a_task_is_drawn_is_no_other_task(tmp_path):
    tiny_online.fit(tmp_path, 3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    tiny_online.fit(tmp_path, 6, resume=last, env_args={"render_mode": "rgb_array"})
    assert tiny_online.seen(tmp_path)[-1]["step"] == 6


def test_a_checkpoint_among_anothers_files_finds_its_own_replay(tmp_path):
    """Two runs with files of the same steps: what is around a checkpoint is not taken for its own."""
    for name, seed in (("one", 0), ("two", 1)):
        tiny_online.fit(tmp_path / name, 6, seed=seed)
    before = fingerprints(tmp_path / "two")
    copy = shutil.copy(tmp_path / "one" / "checkpoints" / "last.ckpt", tmp_path / "two" / "checkpoints" / "copied.ckpt")
    tiny_online.fit(tmp_path / "three", 9, resume=Path(copy))
    tiny_online.fit(tmp_path / "one", 9, resume=tmp_path / "one" / "checkpoints" / "last.ckpt")
    assert tiny_online.seen(tmp_path / "three") == tiny_online.seen(tmp_path / "one")[6:]
    assert fingerprints(tmp_path / "two") == before


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path):
    tiny_online.fit(tmp_path, 12)
    old = Path(shutil.copy(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "old.ckpt"))
    last = tmp_path / "checkpoints" / "last.ckpt"
    tiny_online.fit(tmp_path, 40, resume=last)  # files that only the old one names are gone
    before = fingerprints(tmp_path)
    with pytest.raises(ExperienceError, match="cannot be read"):
        tiny_online.fit(tmp_path, 44, resume=Path(shutil.copy(old, tmp_path / "checkpoints" / "older.ckpt")))
    assert fingerprints(tmp_path) == before
    tiny_online.fit(tmp_path, 42, resume=last)


def fingerprints(folder):
    return {path: path.read_bytes() for part in ("episodes", "replay") for path in (folder / part).iterdir()}


def test_the_loss_is_there_after_every_step_and_the_logger_hears_the_rest_also_after_an_exception(tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert "train/loss" in trainer.callback_metrics

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 6 and not resumed:
                raise RuntimeError("stopped")

    def trained(ckpt_path=None):
        logger = CSVLogger(tmp_path, name="", version="log" if resumed else "first")
        trainer = Trainer(
            accelerator="cpu", max_steps=16, logger=logger, log_every_n_steps=4, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Stop(), OnExceptionCheckpoint(str(tmp_path))],
        )  # fmt: skip
        data = tiny_online.data_module()
        trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data, ckpt_path=ckpt_path)

    resumed = False
    with pytest.raises(RuntimeError, match="stopped"):
        trained()
    resumed = True
    trained(next(tmp_path.glob("*.ckpt")))
    rows = [row for row in csv.DictReader((tmp_path / "log" / "metrics.csv").open()) if row.get("train/rew")]
    assert len(rows) >= 2
