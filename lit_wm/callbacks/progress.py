"""A progress bar that counts updates, because runs end by updates and not by epochs."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class UpdateProgressBar(RichProgressBar):
    """Lightning's rich bar over the batches of an epoch, with ``update n/max_steps`` beside the losses.

    The bar itself writes the epochs as "Epoch 0/-2" where a run is ended by ``max_steps`` alone.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: updates first, then the losses that were logged for it."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)  # a run has a name, not a version
        most = trainer.max_steps
        return {"update": f"{trainer.global_step}/{most}" if most > 0 else trainer.global_step} | items
