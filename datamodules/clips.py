"""Clips: T consecutive steps cut out of a shard.

The rows of a shard are numbered through, episode after episode, so a clip is named by its first row alone. A
*segment* is a run of rows inside which clips may lie: an episode, or the whole shard where clips may cross episodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.codec import Rows, decode_chunk, decode_meta
from datamodules.experience import ExperienceError, ExperienceSpec
from datamodules.index import INDEX_NAME, Index, Shard
from datamodules.shard_reading import read_chunks

Segment = tuple[int, int]  # first row, number of rows


@dataclass(frozen=True)
class Damage:
    """Something in a shard that could not be used: ``chunks`` chunks of it are lost."""

    where: str
    message: str
    chunks: int = 1

    @property
    def kind(self) -> str:
        """The message without what differs from chunk to chunk."""
        return re.sub(r"\d+", "", self.message.removeprefix(self.where).split(" (")[0])


def segments(shard: Shard, length: int, cross_episodes: bool) -> list[Segment]:
    """The segments of a shard that can hold a clip of ``length`` steps."""
    if cross_episodes:
        found = [(0, shard.steps)]
    else:
        steps = np.array([steps for _, steps in shard.episodes], np.int64)
        found = list(zip((np.cumsum(steps) - steps).tolist(), steps.tolist(), strict=True))
    return [(begin, rows) for begin, rows in found if rows >= length]


def all_starts(runs: Sequence[Segment], length: int) -> np.ndarray:
    """Every first row that a clip can have."""
    return np.concatenate([np.arange(begin, begin + rows - length + 1) for begin, rows in runs] or [np.arange(0)])


def window_starts(runs: Sequence[Segment], length: int) -> np.ndarray:
    """First rows of the non-overlapping clips that fill each segment from its beginning; its last rows % length are left over."""
    return np.concatenate([begin + length * np.arange(rows // length) for begin, rows in runs] or [np.arange(0)])


def read_clips(
    index: Index, shard: Shard, starts: Sequence[int], length: int, damage: list[Damage] | None = None
) -> Iterator[Rows]:
    """Read the clips that begin at the given rows, in order of their rows, decoding only the chunks they need.

    Args:
        index: of the folder.
        shard: one of its shards.
        starts: first rows, in any order; one may occur several times.
        length: T, steps of a clip.
        damage: broken chunks are noted here, and the clips that need them are left out; None: the first is an error.
            Chunks that lie elsewhere than the index says are an error in any case.

    Yields:
        key -> (T, ...), and the scalars ``episode`` and ``start``: the episode of the first row, and its step there.

    Raises:
        ExperienceError: something is broken and ``damage`` is None, or shard and index disagree.
    """
    wanted = sorted((int(start) for start in starts), reverse=True)  # the next one last, to pop it
    held: Rows = {}  # rows begin to end: of the chunks so far, what the next clips need
    begin = end = 0
    for where, chunk_begin, chunk_end, members in _located_chunks(index, shard, damage):
        if not wanted:
            return
        if wanted[-1] >= chunk_end:
            continue
        try:
            rows = decode_chunk(members, index.spec, index.codec, where)
        except ExperienceError as error:
            _note(damage, where, error)
            continue
        if held and end == chunk_begin:
            held = {key: np.concatenate([held[key], rows[key]]) for key in rows}
        else:
            held, begin = rows, chunk_begin
        end = chunk_end
        while wanted and wanted[-1] + length <= end:
            start = wanted.pop()
            if start >= begin:
                yield {key: rows[start - begin : start - begin + length].copy() for key, rows in held.items()} | _place(
                    shard, start
                )
            elif damage is None:
                raise ExperienceError(f"{where}: the chunk before it is missing")
        keep = max(wanted[-1], begin) if wanted else end
        held = {key: rows[keep - begin :] for key, rows in held.items()} if keep < end else {}
        begin = keep
    if wanted and damage is None:
        raise ExperienceError(f"{index.root / shard.path} ends before row {wanted[0] + length}, the index disagrees")


def _located_chunks(
    index: Index, shard: Shard, damage: list[Damage] | None
) -> Iterator[tuple[str, int, int, dict[str, bytes]]]:
    """The chunks of a shard, not decoded: (name for messages, first row, row behind the last, members).

    A chunk at another place than the index says is an error even where damage is noted: its rows would be taken for others.
    """
    path, read = index.root / shard.path, 0
    first_row, lengths = _first_rows(shard), dict(shard.episodes)
    end, whole = 0, True  # row behind the last chunk; no chunk was lost since
    chunks = read_chunks(index, shard)
    while True:
        try:
            key, members = next(chunks)
        except StopIteration:
            if whole and end != shard.steps:
                raise ExperienceError(
                    f"{path} ends at step {end}, {index.root / INDEX_NAME} says {shard.steps}: restore both or record again"
                ) from None
            return
        except ExperienceError as error:  # the file ends here
            _note(damage, str(path), error, max(1, shard.samples - read))
            return
        read += 1
        where = f"{path}: chunk {key}"
        try:
            meta = decode_meta(members, where)
            if meta.key != key:
                raise ExperienceError(f"{where}: member meta.json says step {meta.start} of episode {meta.episode}")
        except ExperienceError as error:
            _note(damage, where, error)
            whole = False
            continue
        begin = first_row.get(meta.episode, -1) + meta.start
        fits = meta.start >= 0 and meta.length >= 1 and meta.start + meta.length <= lengths.get(meta.episode, 0)
        if not fits or begin < end or (whole and begin > end):
            raise ExperienceError(
                f"{where} is step {meta.start} of episode {meta.episode}, {index.root / INDEX_NAME} disagrees:"
                " restore both or record again"
            )
        end, whole = begin + meta.length, True
        yield where, begin, end, members


def _note(damage: list[Damage] | None, where: str, error: ExperienceError, chunks: int = 1) -> None:
    if damage is None:
        raise error
    damage.append(Damage(where, str(error), chunks))


def _first_rows(shard: Shard) -> dict[int, int]:
    """Number of an episode -> its first row in the shard."""
    rows = np.cumsum([0, *(steps for _, steps in shard.episodes)]).tolist()
    return {number: row for (number, _), row in zip(shard.episodes, rows, strict=False)}


def _place(shard: Shard, row: int) -> Rows:
    """Episode and step of a row."""
    for number, steps in shard.episodes:
        if row < steps:
            return {"episode": np.int64(number), "start": np.int64(row)}
        row -= steps
    raise ValueError(f"row {row} lies behind the end of {shard.path}")


def collate(clips: Sequence[Rows], spec: ExperienceSpec, without: Sequence[str] = ()) -> dict[str, Tensor]:
    """Clips to a batch: pictures (B,T,C,H,W) uint8, everything else (B,T,...), per-clip scalars (B,)."""
    batch, pictures = {}, spec.pictures
    for key in clips[0]:
        if key in without:
            continue
        values = [clip[key].transpose(0, 3, 1, 2) if key in pictures else clip[key] for clip in clips]
        batch[key] = torch.from_numpy(np.stack(values))
    return batch
