"""Online Dreamer: killed at any moment and resumed, it goes on bit by bit; what it collected trains other runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_online
import tiny_routes
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

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
@pytest.mark.parametrize(("kill_at", "processes"), [(4, 0), (11, 2), (32, 0)])
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, kill_at, processes):
    """Batches, losses, weights, the replay with its latents, environment steps and random numbers after every update."""
    killed = subprocess.run(
        [sys.executable, tiny_online.__file__, str(tmp_path), "40", str(processes), "1", str(kill_at)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    before, expected = tiny_online.seen(tmp_path), tiny_online.seen(whole)
    assert before == expected[:kill_at]
    (tmp_path / "seen-0.jsonl").unlink()
    tiny_online.fit(tmp_path, 40, resume=tmp_path / "checkpoints" / "last.ckpt", processes=processes)
    assert tiny_online.seen(tmp_path) == expected[3 * ((kill_at - 1) // 3) :]
    for name in ("index.json", "train-000000.tar"):
        assert (tmp_path / "episodes" / name).read_bytes() == (whole / "episodes" / name).read_bytes()


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


def test_a_missing_replay_is_named(whole, tmp_path):
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    next((tmp_path / "run" / "replay").glob("rows-*")).unlink()
    with pytest.raises(ExperienceError, match=r"rows-.*npz cannot be read"):
        tiny_online.fit(tmp_path / "run", 42, resume=tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_a_run_stopped_before_its_first_checkpoint_begins_anew(whole, tmp_path):
    """Its episodes are there, finished or not, and nothing names them."""
    import shutil

    shutil.copytree(whole / "episodes", tmp_path / "episodes")
    tiny_online.fit(tmp_path, 30)
    assert tiny_online.seen(tmp_path) == tiny_online.seen(whole)[:30]
    there, before = verify(tmp_path / "episodes"), verify(whole / "episodes")
    assert 0 < there.splits["train"]["episodes"] < before.splits["train"]["episodes"]


def test_a_replay_of_another_environment_is_refused(whole, tmp_path):
    import shutil

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
    assert 8 <= result["test/return"] == result["test/length"] - 1 <= 500
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
