"""BestWeights: the weights with which a validation went best, in a file beside the run's checkpoint."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.checkpoint_file import BEST_WEIGHTS
from lit_wm.errors import UserError, check_choice

VALUE = "best_value"  # under which the file holds what its validation came to


class BestWeights(Callback):
    """Keeps ``checkpoints/best.ckpt`` of a run: weights alone, for ``--ckpt_path best`` of ``test`` and ``validate``.

    Of two that are equally good the later is kept. The file says how good it is, so that a resumed run goes on comparing with it; a run
    that begins anew removes what an earlier one left. (A run that is killed inside a validation does not make up for it.)

    Args:
        monitor: what the validation logs, such as ``val/return``; the mean over ranks.
        mode: ``max`` or ``min``, whichever is better.

    Raises:
        UserError: another mode, or something that no validation logs.
    """

    def __init__(self, monitor: str, mode: str = "max") -> None:
        check_choice("mode of BestWeights", mode, ("max", "min"))
        if not monitor.startswith("val/"):
            raise UserError(f"monitor of BestWeights is {monitor}: give what a validation logs, val/...")
        self.monitor, self.mode = monitor, mode

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that will never be validated, or has no folder.

        Raises:
            UserError: saying which.
        """
        if trainer.fast_dev_run:
            return
        path = self._path(trainer)
        if not sum(trainer.num_val_batches):
            raise UserError(
                "BestWeights watches a validation, but there is none: set trainer.limit_val_batches, or val_episodes where an agent acts"
            )
        if trainer.ckpt_path is None and trainer.is_global_zero:
            path.unlink(missing_ok=True)
        trainer.strategy.barrier()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if nothing before was better.

        Raises:
            UserError: the validation logs no such thing.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise UserError(f"BestWeights watches {self.monitor}, which the validation does not log but {logged}")
        value, path = float(trainer.callback_metrics[self.monitor]), self._path(trainer)
        if not trainer.strategy.broadcast(
            self._is_best(value, path)
        ):  # one decision, whatever rounding makes of a mean
            return
        with getattr(trainer.datamodule, "weights_alone", nullcontext)():
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=True)
            trainer.strategy.save_checkpoint(checkpoint | {VALUE: value}, path)
            trainer.strategy.barrier()

    def _is_best(self, value: float, path: Path) -> bool:
        if not math.isfinite(value):
            return False
        if not path.exists():
            return True
        best = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[VALUE]
        return value >= best if self.mode == "max" else value <= best

    @staticmethod
    def _path(trainer: Trainer) -> Path:
        folder: Any = next((c.run_folder for c in trainer.checkpoint_callbacks if isinstance(c, StepCheckpoint)), None)
        if folder is None:
            raise UserError("BestWeights needs a run folder: give the Trainer lit_wm's StepCheckpoint")
        return folder / BEST_WEIGHTS
