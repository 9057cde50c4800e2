"""Loaders over shards: one for training (endless in spirit, seeded, equal on all ranks, resumable), one for an exact single pass.

What WebDataset leaves open is settled here: shards are shuffled globally by (seed, epoch, lap) *before* they are dealt
to rank x worker, so ranks swap shards; a reader that runs out goes on with the next lap, so every rank gets the same
number of batches; nothing touches the global random generators; a position in an epoch can be saved and restored.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.clips import Damage, all_starts, collate, read_clips, segments
from datamodules.codec import Rows
from datamodules.experience import ExperienceError
from datamodules.index import Index, Shard

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ClipSettings:
    """What a batch of clips looks like.

    Args:
        length: T, steps of a clip.
        batch_size: B, clips of a batch on one rank.
        cross_episodes: a clip may run on into the next recorded episode (``is_first`` marks it) instead of ending
            with its own.
        without: batch keys to withhold.
    """

    length: int
    batch_size: int
    cross_episodes: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """This process among the processes of a run, and the worker processes that read for it."""

    rank: int = 0
    world_size: int = 1
    workers: int = 0


def expected_clips(index: Index, split: str, settings: ClipSettings) -> tuple[list[tuple[Shard, np.ndarray]], float]:
    """What one pass over a split gives.

    Returns:
        The usable shards with all clip starts in each, and how often a pass draws each start on average. The rate is
        the same for all starts and chosen so that a pass draws about steps / T clips. It never exceeds 1.

    Raises:
        ExperienceError: no clip fits.
    """
    runs = {shard: segments(shard, settings.length, settings.cross_episodes) for shard in index.of(split)}
    usable = [(shard, all_starts(found, settings.length)) for shard, found in runs.items() if found]
    if not usable:
        raise no_clip_fits(index, split, settings)
    steps = sum(rows for found in runs.values() for _, rows in found)
    return usable, steps / settings.length / sum(len(starts) for _, starts in usable)


def no_clip_fits(index: Index, split: str, settings: ClipSettings) -> ExperienceError:
    """The error that says why a split gives no clips, and what to do."""
    lengths = [steps for shard in index.of(split) for _, steps in shard.episodes]
    if not lengths:
        return ExperienceError(
            f"{index.root} holds no {split} episodes: record more, of every ten one is held out for it"
        )
    longest = f"{len(lengths)} {split} episodes" if settings.cross_episodes else f"longest {split} episode"
    return ExperienceError(
        f"no clip of clip_length={settings.length} steps fits the {longest} in {index.root}"
        f" (longest episode: {max(lengths)}): lower clip_length"
        + ("" if settings.cross_episodes else " or set cross_episodes")
    )


def deal_shards(weights: Sequence[int], readers: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal shards to readers: in random order, each to whoever has least so far; a reader left without shares one.

    Args:
        weights: clips in each shard, all positive.
        readers: ranks x workers.
        rng: equal on all readers.

    Returns:
        For each reader the numbers of its shards, never empty.
    """
    hands: list[list[int]] = [[] for _ in range(readers)]
    load = [0] * readers
    for shard in rng.permutation(len(weights)).tolist():
        reader = load.index(min(load))
        hands[reader].append(shard)
        load[reader] += weights[shard]
    shared = [1] * len(weights)
    for hand in hands:
        if not hand:
            shard = max(range(len(weights)), key=lambda i: weights[i] / shared[i])
            shared[shard] += 1
            hand.append(shard)
    return hands


class TrainClips(IterableDataset):
    """Batches of one epoch on one rank; each item is (batch, damage met on the way), or (None, message) for an error.

    Every start of a clip is equally likely among the shards that a reader is dealt, and these change with every epoch.

    Args:
        index: of the folder.
        settings: of the batches.
        place: this process.
        seed: of the order.
        epoch: number of the epoch.
        batches: of this epoch on this rank.
        skip: batches to leave out because they were done before; they are read again, not handed over.
        shuffle_buffer: clips that are mixed by each reader.
    """

    def __init__(
        self,
        index: Index,
        settings: ClipSettings,
        place: Place,
        *,
        seed: int,
        epoch: int,
        batches: int,
        skip: int,
        shuffle_buffer: int,
    ) -> None:
        self.index, self.settings, self.place = index, settings, place
        self.seed, self.epoch, self.batches, self.skip = seed, epoch, batches, skip
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[tuple[Batch | None, list[Damage] | str]]:
        try:
            yield from self._read()
        except ExperienceError as error:  # as a value: an exception from a worker arrives wrapped in its traceback
            yield None, str(error)

    def _read(self) -> Iterator[tuple[Batch | None, list[Damage]]]:
        worker, workers = worker_place()
        turn = (self.skip + worker) % workers  # after a resume worker 0 comes first again, but it is another's turn
        slot, slots = self.place.rank * workers + turn, self.place.world_size * workers
        mine = range(turn, self.batches, workers)
        damage: list[Damage] = []
        clips = self._clips(slot, slots, len(mine) * self.settings.batch_size, damage)
        order = random.Random(f"{self.seed}/{self.epoch}/{slot}")
        clips = iter(wds.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=order)(clips))
        for number in mine:
            batch = list(islice(clips, self.settings.batch_size))
            if len(batch) < self.settings.batch_size:
                yield None, damage
                return
            if number >= self.skip:
                yield collate(batch, self.index.spec, self.settings.without), damage[:]
                damage.clear()

    def _clips(self, slot: int, slots: int, need: int, damage: list[Damage]) -> Iterator[Rows]:
        """Exactly ``need`` clips for one reader, lap after lap; fewer only if lap after lap nothing can be read."""
        shards, rate = expected_clips(self.index, "train", self.settings)
        weights = [len(starts) for _, starts in shards]
        draw = np.random.default_rng([self.seed, self.epoch, slot])
        lap = barren = 0
        while need and barren < 10:
            hand = deal_shards(weights, slots, np.random.default_rng([self.seed, self.epoch, lap, 1 << 20]))[slot]
            found, total = 0, sum(weights[number] for number in hand)
            # Drawn over the whole hand before reading: to stop reading when there is enough would favour early rows.
            count = min(need, max(1, int(rate * total + draw.random())))
            chosen = np.sort(draw.choice(total, count, replace=False))
            for number in hand:
                shard, starts = shards[number]
                here, chosen = np.split(chosen, [np.searchsorted(chosen, len(starts))])
                for clip in read_clips(self.index, shard, starts[here], self.settings.length, damage):
                    found += 1
                    yield clip
                chosen -= len(starts)
            need -= found
            barren = 0 if found else barren + 1
            lap += 1


class TrainLoader:
    """What Lightning iterates over in training: ``len()`` batches an epoch, each epoch in another order, resumable.

    ``state_dict`` holds the position; Lightning's fit loop stores it in checkpoints. A loader that loaded a position in
    mid-epoch goes on with exactly the batches that the uninterrupted run would have had.

    Args:
        index: of the folder.
        settings: of the batches.
        place: this process.
        seed: of the order.
        shuffle_buffer: clips that are mixed by each reader.
        max_corrupt: share of the chunks of the training split that may be broken; one always may, unless it is 0.
        epoch_batches: batches of an epoch; None: as many as one pass holds, steps / T / (B x ranks).

    Raises:
        ExperienceError: no clip fits.
    """

    def __init__(
        self,
        index: Index,
        settings: ClipSettings,
        place: Place,
        *,
        seed: int,
        shuffle_buffer: int,
        max_corrupt: float,
        epoch_batches: int | None,
    ) -> None:
        shards, rate = expected_clips(index, "train", settings)
        clips = int(rate * sum(len(starts) for _, starts in shards))
        self._index, self._settings, self._place = index, settings, place
        self._seed, self._shuffle_buffer = seed, shuffle_buffer
        self._batches = epoch_batches or max(1, clips // (settings.batch_size * place.world_size))
        self._max_corrupt = max_corrupt
        self.corrupt: dict[str, int] = {}  # where -> chunks lost there, as met so far on this rank
        self._logged: set[str] = set()
        self._epoch = self._done = 0
        self._resumed = False

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing happens before the first batch is asked for, when Lightning has told the epoch.
        # Lightning abandons it after the last batch instead of exhausting it, so no code may stand behind the loop.
        if self._done >= len(self) or (self._done and not self._resumed):
            self._epoch, self._done = self._epoch + 1, 0
        self._resumed = False
        clips = TrainClips(
            self._index,
            self._settings,
            self._place,
            seed=self._seed,
            epoch=self._epoch,
            batches=len(self),
            skip=self._done,
            shuffle_buffer=self._shuffle_buffer,
        )
        for batch, damage in read_ahead(clips, self._place.workers):
            if isinstance(damage, str):
                raise ExperienceError(damage)
            self._count(damage)
            if batch is None:
                raise ExperienceError(f"nothing in the training shards of {self._index.root} can be read: record again")
            self._done += 1
            yield batch

    @property
    def sampler(self) -> TrainLoader:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning names the epoch before it begins; it knows of epochs that ``limit_train_batches`` cut short."""
        if epoch != self._epoch:
            self._epoch, self._done = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, and all that determines the batches behind it. The same on all ranks."""
        return {
            "epoch": self._epoch,
            "batches_done": self._done,
            "num_workers": self._place.workers,
            "world_size": self._place.world_size,
            "batch_size": self._settings.batch_size,
            "clip_length": self._settings.length,
            "cross_episodes": self._settings.cross_episodes,
            "shuffle_buffer": self._shuffle_buffer,
            "epoch_batches": self._batches,
            "seed": self._seed,
            "data_hash": self._index.data_hash,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position.

        Raises:
            ExperienceError: the position lies inside an epoch, and something differs that the order depends on.
        """
        if 0 < state["batches_done"] < state["epoch_batches"]:
            for key, mine in self.state_dict().items():
                if key not in ("epoch", "batches_done") and state.get(key) != mine:
                    raise ExperienceError(
                        f"cannot resume in mid-epoch: {key} was {state.get(key)}, now it is {mine};"
                        " set it back, or resume from a checkpoint at the end of an epoch"
                    )
            self._done, self._resumed = state["batches_done"], True
        else:
            self._done = len(self) if state["batches_done"] else 0
        self._epoch = state["epoch"]

    def _count(self, damage: list[Damage]) -> None:
        """Count broken chunks, each once however often it is met; log one of each kind; stop above the limit."""
        for found in damage:
            self.corrupt[found.where] = found.chunks
            lost = check_corrupt(self._index, sum(self.corrupt.values()), self._max_corrupt, found)
            if found.kind not in self._logged:
                self._logged.add(found.kind)
                log.warning("%s so far and skipped (said once of its kind): %s", lost, found.message)


def check_corrupt(index: Index, lost: int, max_corrupt: float, last: Damage) -> str:
    """How many of the training chunks are lost, in words.

    Raises:
        ExperienceError: more than ``max_corrupt`` allows; see :class:`TrainLoader`.
    """
    chunks = index.splits["train"]["samples"]
    allowed = int(max_corrupt * chunks)
    if max_corrupt > 0:
        allowed = max(1, allowed)
    found = f"{lost} of {chunks} training chunks in {index.root} are corrupt"
    if lost > allowed:
        raise ExperienceError(
            f"{found}, max_corrupt allows {allowed}: restore the shards or record again; the last is {last.message}"
        )
    return found


def read_ahead(batches: IterableDataset, workers: int) -> DataLoader:
    """Iterate over ready-made batches, in worker processes if there are any, drawing nothing from the global generators."""
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )


def worker_place() -> tuple[int, int]:
    """Number of this worker process, and how many there are; (0, 1) in the main process."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _as_it_is(item: Any) -> Any:
    return item
