"""An exact single pass: every window of a held-out split once over all ranks, in a fixed order; and fixed sets of clips."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset

from datamodules.clips import Damage, collate, read_clips, segments, window_starts
from datamodules.codec import Rows
from datamodules.experience import ExperienceError
from datamodules.index import Index, read_index
from datamodules.loader import Batch, ClipSettings, Place, check_corrupt, no_clip_fits, read_ahead, worker_place

log = logging.getLogger(__name__)

Window = tuple[int, int, float]  # number of the shard in its split, first row, weight


class Windows(IterableDataset):
    """Batches of windows; each item is (batch, None), or (None, message) where something is broken."""

    def __init__(self, index: Index, split: str, settings: ClipSettings, windows: list[Window]) -> None:
        self.index, self.split, self.settings, self.windows = index, split, settings, windows

    def __iter__(self) -> Iterator[tuple[Batch | None, str | None]]:
        worker, workers = worker_place()
        size = self.settings.batch_size
        batches = [self.windows[i : i + size] for i in range(0, len(self.windows), size)][worker::workers]
        clips = self._clips([window for batch in batches for window in batch])
        try:
            for windows in batches:
                batch = list(islice(clips, len(windows)))
                yield collate(batch, self.index.spec, self.settings.without), None
        except ExperienceError as error:  # as a value: an exception from a worker arrives wrapped in its traceback
            yield None, str(error)

    def _clips(self, windows: list[Window]) -> Iterator[Rows]:
        shards = self.index.of(self.split)
        for number, group in groupby(windows, key=lambda window: window[0]):
            starts, weights = zip(*((start, weight) for _, start, weight in group), strict=True)
            clips = read_clips(self.index, shards[number], starts, self.settings.length)
            for clip, weight in zip(clips, weights, strict=True):
                yield clip | {"weight": np.float32(weight)}


class WindowLoader:
    """One pass over the non-overlapping windows of a split, in fixed order, each on exactly one rank.

    Every rank gets the same number of batches. Where the windows do not divide, the last one is repeated with
    ``weight`` 0 (batch key ``weight`` (B,) float32, else 1); one process has nothing repeated and a shorter last batch.

    Args:
        index: of the folder.
        split: ``val`` or ``test``.
        settings: of the batches.
        place: this process.

    Raises:
        ExperienceError: the split is empty, or no window fits; when iterated, anything that is broken.
    """

    def __init__(self, index: Index, split: str, settings: ClipSettings, place: Place) -> None:
        every = [
            (number, int(start))
            for number, shard in enumerate(index.of(split))
            for start in window_starts(segments(shard, settings.length, settings.cross_episodes), settings.length)
        ]
        if not every:
            raise no_clip_fits(index, split, settings)
        share = -(-len(every) // place.world_size)
        mine = range(place.rank * share, (place.rank + 1) * share)
        windows = [(*every[min(i, len(every) - 1)], float(i < len(every))) for i in mine]
        self._windows, self._workers = Windows(index, split, settings, windows), place.workers
        self._batches = -(-share // settings.batch_size)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        for batch, broken in read_ahead(self._windows, self._workers):
            if batch is None:
                raise ExperienceError(broken)
            yield batch


def fixed_clips(
    root: str | Path,
    split: str,
    length: int,
    count: int,
    seed: int = 0,
    cross_episodes: bool = False,
    max_corrupt: float = 0.01,
) -> dict[str, Tensor]:
    """The same clips for everybody: non-overlapping, spread evenly over the episodes of a split and inside them.

    Args:
        root: folder of a recording.
        split: ``train``, ``val`` or ``test``.
        length: T, steps of a clip.
        count: the most clips; fewer where the split holds fewer that do not overlap.
        seed: which episodes get one more where ``count`` does not divide, and where clips lie in their slack.
        cross_episodes: clips may run on into the next episode.
        max_corrupt: of ``train`` only, as in training: so much of it may be broken; clips that need it are left out
            with a warning. In ``val`` and ``test`` anything broken is an error.

    Returns:
        One batch of the data contract, (B,T,...), with ``state`` if it was recorded, ``episode`` and ``start``.

    Raises:
        ExperienceError: the folder is broken, or no clip fits.
    """
    index = read_index(root)
    settings = ClipSettings(length, count, cross_episodes)
    runs = [
        (shard, begin, rows) for shard in index.of(split) for begin, rows in segments(shard, length, cross_episodes)
    ]
    if not runs:
        raise no_clip_fits(index, split, settings)
    draw = np.random.default_rng(seed)
    quotas = _spread(count, [rows // length for *_, rows in runs], draw)
    starts: dict[str, list[int]] = {}
    for (shard, begin, rows), quota in zip(runs, quotas, strict=True):
        slack = np.sort(draw.integers(0, rows - quota * length + 1, quota))
        starts.setdefault(shard.path, []).extend((begin + slack + length * np.arange(quota)).tolist())
    damage: list[Damage] | None = [] if split == "train" else None
    clips = [
        clip
        for shard in index.of(split)
        for clip in read_clips(index, shard, starts.get(shard.path, ()), length, damage)
    ]
    if damage:
        found = check_corrupt(index, sum(each.chunks for each in damage), max_corrupt, damage[-1])
        log.warning("%s, clips that need them are left out; the last is %s", found, damage[-1].message)
    if not clips:
        raise ExperienceError(f"nothing in the training shards of {index.root} can be read: record again")
    return collate(clips, index.spec)


def _spread(count: int, room: list[int], draw: np.random.Generator) -> list[int]:
    """Deal ``count`` clips to runs that have ``room`` for so many each, one a round, in random order."""
    quotas = np.zeros(len(room), np.int64)
    while count > 0 and (quotas < room).any():
        open_runs = np.flatnonzero(quotas < room)
        chosen = draw.permutation(open_runs)[:count]
        quotas[chosen] += 1
        count -= len(chosen)
    return quotas.tolist()
