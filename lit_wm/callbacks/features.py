"""What ``lit-wm predict`` writes: the features of the test clips."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class FeatureWriter(Callback):
    """Writes ``features_test.npz``: ``features`` (n,T,D) float32, and of each clip its ``episode`` and first ``start`` (n,).

    The clips are those of ``test``: they fill each episode from its beginning and do not overlap; what is left of it is no clip.
    With several ranks each writes its own clips, ``features_test_rank1.npz`` and so on.

    Args:
        folder: where to; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clips: dict[str, list[np.ndarray]] = {"features": [], "episode": [], "start": []}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the clips of a batch, less those that only pad a rank's last one."""
        real = batch["weight"] > 0
        for key, value in (("features", outputs.float()), ("episode", batch["episode"]), ("start", batch["start"])):
            self.clips[key].append(value[real].cpu().numpy())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and say where it is."""
        rank = f"_rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.folder / f"features_test{rank}.npz"
        self.folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with open(part, "wb") as file:
            np.savez_compressed(file, **{key: np.concatenate(parts) for key, parts in self.clips.items()})
        os.replace(part, path)
        print(f"features of {sum(map(len, self.clips['features']))} clips in {path}")
