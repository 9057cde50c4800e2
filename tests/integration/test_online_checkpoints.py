"""Several checkpoints of an online run: each can be gone on with, whoever saved it, wherever it lies, in whatever order."""

import shutil
from pathlib import Path

import pytest
import tiny_online
import tiny_routes
import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from datamodules.experience import ExperienceError
from datamodules.shards import verify

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
LAST = Path("checkpoints", "last.ckpt")
pytestmark = pytest.mark.filterwarnings("ignore:.*dirpath has changed")


class Killed(Exception):
    """Stands in for kill -9: nothing is saved on the way out."""


class At(Callback):
    """Does something after certain updates."""

    def __init__(self, does, *updates):
        self.does, self.updates = does, updates

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in self.updates:
            self.does(trainer)


def die(*_, **__):
    raise Killed


def missing(checkpoint, run):
    """Files of the replay that a checkpoint names and the run no longer has."""
    (state,) = torch.load(checkpoint, weights_only=True)["ReplayDataModule"]["ranks"]
    named = {name for stream in state["replay"]["streams"] for block in stream["blocks"] for name in block[:2] if name}
    assert named
    return {name for name in named if not (run / "replay" / name).exists()}


def last_seen(run):
    return tiny_online.seen(run)[-1]


# ---- what stays, and what goes -----------------------------------------------------------------------------------


def test_what_a_callback_saved_beside_stays_whole_and_the_last_checkpoint_too(tmp_path):
    def save(trainer):
        trainer.save_checkpoint(tmp_path / "mine" / f"{trainer.global_step}.ckpt")

    with pytest.raises(Killed):
        tiny_online.fit(tmp_path, 30, every=4, callbacks=(At(save, 5, 6, 7), At(die, 7)))
    mine = sorted((tmp_path / "mine").iterdir())
    assert len(mine) == 3 and not any(missing(path, tmp_path) for path in (*mine, tmp_path / LAST))
    tiny_online.fit(tmp_path, 30, every=4, resume=tmp_path / LAST)  # a new process knows of them only by their lists
    assert not any(missing(path, tmp_path) for path in (*mine, tmp_path / LAST))
    tiny_online.fit(tmp_path / "other", 6, resume=mine[0])
    assert last_seen(tmp_path / "other")["step"] == 6


def test_who_deletes_a_list_has_its_files_deleted(tmp_path):
    mine = tmp_path / "mine.ckpt"
    save = At(lambda trainer: trainer.save_checkpoint(mine), 5)
    tiny_online.fit(tmp_path, 30, callbacks=(save,))
    assert not missing(mine, tmp_path)
    next((tmp_path / "replay").glob("kept-00000005-*.txt")).unlink()
    tiny_online.fit(tmp_path, 36, resume=tmp_path / LAST)
    assert missing(mine, tmp_path) and not missing(tmp_path / LAST, tmp_path)


def test_nothing_is_deleted_before_the_new_checkpoint_is_in_its_place(tmp_path, monkeypatch):
    tiny_online.fit(tmp_path, 12, keep_episodes=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TorchCheckpointIO, "save_checkpoint", die)
        tiny_online.fit(tmp_path, 12, keep_episodes=False, seed=5)  # begun anew in the same folder
    assert not missing(tmp_path / LAST, tmp_path)


def test_what_an_exception_left_elsewhere_survives_a_new_run_in_the_folder(tmp_path):
    oops = OnExceptionCheckpoint(str(tmp_path / "oops"))
    with pytest.raises(Killed):
        tiny_online.fit(tmp_path, 30, every=1000, callbacks=(At(die, 20), oops))
    kept = shutil.copy(next((tmp_path / "oops").iterdir()), tmp_path / "kept.ckpt")
    with pytest.raises(ExperienceError, match="episodes already holds a recording"):
        tiny_online.fit(tmp_path, 30, seed=3)
    tiny_online.fit(tmp_path, 30, seed=3, keep_episodes=False)
    assert not missing(kept, tmp_path)
    tiny_online.fit(tmp_path, 22, resume=kept)
    assert last_seen(tmp_path)["step"] == 22 and verify(tmp_path / "episodes")


def test_runs_side_by_side_in_folders_of_any_name_leave_each_other_alone(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        tiny_online.fit(tmp_path, 6, folder=name, seed=seed)
    for name in ("a", "b"):
        assert not missing(tmp_path / name / "last.ckpt", tmp_path / name)
        tiny_online.fit(tmp_path, 9, folder=name, resume=tmp_path / name / "last.ckpt")
        assert not (tmp_path / name / "episodes-2").exists(), "it is its own last checkpoint"


def test_a_callback_that_replaces_checkpoints_is_said_to_leave_files(tmp_path):
    def trained(**options):
        checkpoints = ModelCheckpoint(str(tmp_path / "checkpoints"), every_n_train_steps=3, **options)
        data = tiny_online.data_module(keep_episodes=False)
        trainer = Trainer(max_steps=3, callbacks=[checkpoints], **QUIET)
        trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)

    with pytest.warns(UserWarning, match=r"ModelCheckpoint replaces its checkpoints, but the files .* stay"):
        trained()
    with pytest.warns(UserWarning) as said:
        trained(save_top_k=-1)
        tiny_online.fit(tmp_path, 3)
    assert not [warning for warning in said if "replaces its checkpoints" in str(warning.message)]


# ---- saved after the fit, or without a replay ----------------------------------------------------------------------


def test_saved_after_the_fit_it_holds_the_replay_of_the_last_update(tmp_path):
    trainer = tiny_online.fit(tmp_path, 12).trainer
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    tiny_online.fit(tmp_path, 18, resume=tmp_path / LAST)
    assert not missing(tmp_path / "final.ckpt", tmp_path)
    tiny_online.fit(tmp_path / "other", 14, resume=tmp_path / "final.ckpt")
    assert tiny_online.seen(tmp_path / "other") == tiny_online.seen(tmp_path)[12:14]


def test_a_checkpoint_without_a_replay_says_so_when_it_is_saved_and_when_it_is_gone_on_with(tmp_path):
    data = tiny_online.data_module()
    trainer = Trainer(max_steps=3, enable_checkpointing=False, **QUIET)
    trainer.fit(tiny_routes.tiny("dreamer", data.spec), datamodule=data)
    with pytest.warns(UserWarning, match="this checkpoint holds no replay, because the fit is over"):
        trainer.save_checkpoint(tmp_path / "bare.ckpt")
    with pytest.warns(UserWarning, match="goes on from update 3 with an empty replay"):
        tiny_online.fit(tmp_path, 4, resume=tmp_path / "bare.ckpt")


def test_what_test_loaded_is_not_what_the_next_fit_goes_on_from(tmp_path):
    tiny_online.fit(tmp_path, 6)
    data = tiny_online.data_module(test_episodes=3)
    model = tiny_routes.tiny("dreamer", data.spec)
    Trainer(enable_checkpointing=False, **QUIET).test(model, datamodule=data, ckpt_path=tmp_path / LAST, verbose=False)
    Trainer(max_steps=1, enable_checkpointing=False, callbacks=[At(begins_small, 1)], **QUIET).fit(
        model, datamodule=data
    )


def begins_small(trainer):
    assert trainer.datamodule.statistics()["env/steps"] == 30, "nothing but what one batch needs was played"


# ---- going back --------------------------------------------------------------------------------------------------


def test_one_branch_and_then_another_each_with_its_recording(tmp_path):
    """Back to update 6 with another learning rate, then on from update 30 of the first branch."""
    tiny_online.fit(tmp_path, 42, every=6, keep_all=True)
    first = verify(tmp_path / "episodes").data_hash
    with pytest.warns(UserWarning, match=r"episodes holds episodes that were played after .* in .*episodes-2$"):
        tiny_online.fit(
            tmp_path, 40, every=200, keep_all=True, lr=1e-2, resume=tmp_path / "checkpoints" / "step=6.ckpt"
        )
    second = verify(tmp_path / "episodes-2").data_hash
    with pytest.warns(UserWarning, match="episodes-3$"):
        tiny_online.fit(tmp_path, 38, every=200, keep_all=True, resume=tmp_path / "checkpoints" / "step=30.ckpt")
    assert [verify(tmp_path / name).data_hash for name in ("episodes", "episodes-2")] == [first, second]
    there = {entry.name for entry in tmp_path.iterdir()}
    tiny_online.fit(tmp_path, 39, every=200, keep_all=True, resume=tmp_path / LAST)
    assert {entry.name for entry in tmp_path.iterdir()} == there, "the last checkpoint's recording is gone on with"


def test_a_recording_that_went_on_otherwise_is_not_taken_for_the_checkpoints_own(tmp_path):
    """Saved between two checkpoints, and after the first of them the run went on with another learning rate."""
    mine = tmp_path / "mine.ckpt"
    with pytest.raises(Killed):
        tiny_online.fit(tmp_path, 60, every=30, callbacks=(At(lambda t: t.save_checkpoint(mine), 55), At(die, 56)))
    tiny_online.fit(tmp_path, 60, every=30, lr=1e-1, resume=tmp_path / LAST)
    with pytest.warns(UserWarning, match=r"holds other episodes than it did: .* records from here on in .*episodes-2"):
        tiny_online.fit(tmp_path, 56, resume=mine)
    assert verify(tmp_path / "episodes")


def test_going_back_and_dying_before_the_next_checkpoint_leaves_the_last_one_whole(tmp_path):
    tiny_online.fit(tmp_path, 20, every=20)
    old = Path(shutil.copy(tmp_path / LAST, tmp_path / "old.ckpt"))
    tiny_online.fit(tmp_path, 40, every=20, resume=tmp_path / LAST)
    with pytest.raises(Killed):
        tiny_online.fit(tmp_path, 60, every=20, resume=old, callbacks=(At(die, 21),))
    tiny_online.fit(tmp_path, 50, every=20, resume=tmp_path / LAST)
    assert [entry["step"] for entry in tiny_online.seen(tmp_path)][-10:] == list(range(41, 51))
    assert verify(tmp_path / "episodes")


def test_each_fit_of_one_object_has_files_of_its_own(tmp_path):
    """As in a notebook: back to update 6 with another learning rate; what update 18 of the first fit needs is as it was."""
    data = tiny_online.data_module(keep_episodes=False)

    def fit(steps, lr, resume=None):
        checkpoints = ModelCheckpoint(
            str(tmp_path / "checkpoints"), filename="{step}", every_n_train_steps=6, save_top_k=-1,
            enable_version_counter=False,
        )  # fmt: skip
        trainer = Trainer(max_steps=steps, callbacks=[checkpoints], **QUIET)
        trainer.fit(tiny_routes.tiny("dreamer", data.spec, lr=lr), datamodule=data, ckpt_path=resume)

    fit(18, 1e-3)
    files = {path: path.read_bytes() for path in (tmp_path / "replay").iterdir()}
    fit(12, 3e-2, tmp_path / "checkpoints" / "step=6.ckpt")
    assert {path: path.read_bytes() for path in files} == files


def test_a_lost_replay_is_missed_where_it_was_written(tmp_path):
    tiny_online.fit(tmp_path / "run", 6)
    kept = shutil.copy(tmp_path / "run" / LAST, tmp_path / "kept.ckpt")
    next((tmp_path / "run" / "replay").glob("rows-*")).unlink()
    with pytest.raises(ExperienceError, match=rf"^{tmp_path}/run/replay/rows-.*npz cannot be read"):
        tiny_online.fit(tmp_path / "new", 8, resume=kept)
