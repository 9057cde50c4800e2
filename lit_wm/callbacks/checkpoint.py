"""StepCheckpoint: one file, ``last.ckpt``, replaced atomically every N updates and at the end of the fit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class StepCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/last.ckpt`` of a run, from which ``--ckpt_path last`` goes on as if nothing had happened.

    Args:
        every_n_train_steps: optimizer updates between two checkpoints.
        keep_all: keep a numbered file for each instead.
    """

    def __init__(self, every_n_train_steps: int = 100, keep_all: bool = False) -> None:
        super().__init__(
            filename="{step}" if keep_all else "last",
            every_n_train_steps=every_n_train_steps,
            save_top_k=-1 if keep_all else 1,
            save_last=keep_all,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    @property
    def run_folder(self) -> Path | None:
        """The folder that holds ``checkpoints``, or one of another name itself; None before it is known. Other checkpoint
        callbacks have no such thing, by which the run's own is told from them."""
        if not self.dirpath:
            return None
        folder = Path(self.dirpath)
        return folder.parent if folder.name == "checkpoints" else folder

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Data that keeps files beside the checkpoint may delete those of the one that is written over, now and not before."""
        written_over = getattr(trainer.datamodule, "written_over", None)
        alone = written_over is None or self.save_top_k != 1
        with nullcontext() if alone else written_over(Path(filepath)):
            super()._save_checkpoint(trainer, filepath)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """The last update is kept even when it is no multiple of N, and here already: when the fit has ended, Lightning
        counts the epoch as over, and a run that is made longer would miss the rest of it."""
        super().on_train_batch_end(trainer, *arguments)
        if trainer.global_step == trainer.max_steps or trainer.should_stop:
            self._save_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise where the fit ends with an epoch."""
        self._save_now(trainer)

    def _save_now(self, trainer: Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
