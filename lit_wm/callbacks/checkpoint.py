"""StepCheckpoint: one file, ``last.ckpt``, replaced atomically every N updates and at the end of the fit."""

from __future__ import annotations

from pathlib import Path

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
        """The folder that holds ``checkpoints``; None before it is known. Other checkpoint callbacks have no such thing,
        by which the run's own is told from them."""
        return Path(self.dirpath).parent if self.dirpath else None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last update is kept even when it is no multiple of N."""
        if self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
