"""EpisodeDataModule: clips of recorded episodes for Lightning."""

from __future__ import annotations

from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.experience import STEP_KEYS, ExperienceError
from datamodules.index import Index, read_index
from datamodules.loader import ClipSettings, Place, TrainLoader
from datamodules.windows import WindowLoader, fixed_clips

__all__ = ["EpisodeDataModule", "fixed_clips"]


class EpisodeDataModule(LightningDataModule):
    """Clips of T steps from the shards under ``root``.

    Training draws clips from random starts, every start equally likely; validation and test make an exact single pass
    over non-overlapping windows of episodes that training never sees. Batches hold the keys of the data contract,
    pictures (B,T,C,H,W) uint8, and ``episode`` (B,), ``start`` (B,) int64; validation and test also ``weight`` (B,).

    Args:
        root: folder that ``lit-wm record`` wrote.
        batch_size: B, clips of a batch on each rank.
        clip_length: T, steps of a clip. Episodes that are shorter are left out (see ``cross_episodes``).
        num_workers: processes that read ahead, on each rank.
        seed: of the order of training.
        shuffle_buffer: clips that each reader mixes.
        cross_episodes: a clip may run on into the next recorded episode, ``is_first`` marking where. Dreamer wants
            this where episodes are shorter than its clips.
        without: batch keys to withhold, such as ``state``; a withheld observation is not in ``spec`` either.
        max_corrupt: share of the training chunks that may be corrupt; they are skipped, counted and logged. One always
            may be, unless it is 0. In validation and test anything corrupt is an error.
        epoch_batches: batches of a training epoch; None: steps / T / (B x ranks), what one pass holds.

    Raises:
        ExperienceError: the folder is missing or broken, or an argument cannot work.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 16,
        clip_length: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_buffer: int = 256,
        cross_episodes: bool = False,
        without: list[str] | None = None,
        max_corrupt: float = 0.01,
        epoch_batches: int | None = None,
    ) -> None:
        super().__init__()
        self.index: Index = read_index(root)
        without = without or []
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("clip_length", clip_length, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("shuffle_buffer", shuffle_buffer, 1),
            ("max_corrupt", max_corrupt, 0),
            ("epoch_batches", 1 if epoch_batches is None else epoch_batches, 1),
        ):
            if value < least:
                raise ExperienceError(f"{name} is {value}, it must be at least {least}")
        known = {*self.index.spec.observations, *STEP_KEYS, "state"} - {"is_first", "is_last"}
        if unknown := sorted(set(without) - known):
            raise ExperienceError(f"without names '{unknown[0]}', it can name {', '.join(sorted(known))}")
        self._settings = ClipSettings(clip_length, batch_size, cross_episodes, tuple(without))
        self._workers = num_workers
        self._train_loader: TrainLoader | None = None
        self._train = {
            "seed": seed,
            "shuffle_buffer": shuffle_buffer,
            "max_corrupt": max_corrupt,
            "epoch_batches": epoch_batches,
        }

    @property
    def spec(self) -> dict[str, Any]:
        """What a model must be built for, as plain JSON types (``ExperienceSpec.to_dict()``)."""
        spec = self.index.spec.to_dict()
        shapes = spec["observations"]
        spec["observations"] = {key: shape for key, shape in shapes.items() if key not in self._settings.without}
        return spec

    @property
    def clip_length(self) -> int:
        """T, steps of a clip."""
        return self._settings.length

    @property
    def data_hash(self) -> str:
        """Equal for equal data."""
        return self.index.data_hash

    def setup(self, stage: str) -> None:
        """Say so if what is there is less than what was to be recorded."""
        if stage == "fit" and not self.index.complete:
            steps = sum(split["steps"] for split in self.index.splits.values())
            rank_zero_warn(f"{self.index.root} holds {steps} steps of a recording that was interrupted: that is all")

    def train_dataloader(self) -> TrainLoader:
        self._train_loader = TrainLoader(self.index, self._settings, self._place(), **self._train)
        return self._train_loader

    def statistics(self) -> dict[str, float]:
        """What a training step logs about the data: chunks met so far that could not be used, on this rank."""
        corrupt = sum(self._train_loader.corrupt.values()) if self._train_loader is not None else 0
        return {"data/corrupt_chunks": float(corrupt)} if corrupt else {}

    def val_dataloader(self) -> WindowLoader:
        return WindowLoader(self.index, "val", self._settings, self._place())

    def test_dataloader(self) -> WindowLoader:
        return WindowLoader(self.index, "test", self._settings, self._place())

    def predict_dataloader(self) -> WindowLoader:
        return self.test_dataloader()

    def _place(self) -> Place:
        if self.trainer is None:
            return Place(workers=self._workers)
        return Place(self.trainer.global_rank, self.trainer.world_size, self._workers)
