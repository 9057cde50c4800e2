"""BestWeights: the weights with which a validation went best, in a file beside the run's checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from lightning import Callback, LightningModule, Trainer

from lit_wm.callbacks.checkpoint import StepCheckpoint
from lit_wm.checkpoint_file import BEST_WEIGHTS
from lit_wm.errors import UserError, check_choice


class BestWeights(Callback):
    """Keeps ``checkpoints/best.ckpt`` of a run: weights alone, for ``--ckpt_path best`` of ``test`` and ``validate``.

    Of two that are equally good the later is kept. A resumed run goes on comparing with the best so far.

    Args:
        monitor: what the validation logs, such as ``val/return``.
        mode: ``max`` or ``min``, whichever is better.
    """

    def __init__(self, monitor: str, mode: str = "max") -> None:
        check_choice("mode of BestWeights", mode, ("max", "min"))
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if nothing before was better.

        Raises:
            UserError: the validation logs no such thing, or the run has no folder.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise UserError(f"BestWeights watches {self.monitor}, which the validation does not log but {logged}")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is not None and (value < self.best if self.mode == "max" else value > self.best):
            return
        folder = next((c.run_folder for c in trainer.checkpoint_callbacks if isinstance(c, StepCheckpoint)), None)
        if folder is None:
            raise UserError("BestWeights needs a run folder: give the Trainer lit_wm's StepCheckpoint")
        self.best = value
        with getattr(trainer.datamodule, "weights_alone", nullcontext)():
            trainer.save_checkpoint(folder / BEST_WEIGHTS, weights_only=True)
