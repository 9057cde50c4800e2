"""Shards back to episodes, everything held against the index."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from datamodules.codec import Rows, decode_chunk, decode_meta
from datamodules.experience import ExperienceError, check_episode
from datamodules.index import INDEX_NAME, Index, Shard, read_index


def read_chunks(index: Index, shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The raw members of a shard's chunks in order: (key, member name -> bytes).

    Raises:
        ExperienceError: the file is missing, ends early or is no tar file; raised after the chunks that can be read.
    """
    path, read = index.root / shard.path, 0
    try:
        files = tar_file_expander(url_opener([{"url": str(path)}]))
        for sample in group_by_keys(files, lcase=False):
            read += 1
            yield sample["__key__"], {name: data for name, data in sample.items() if not name.startswith("__")}
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise ExperienceError(f"{path} cannot be read to its end: chunk {read} of {shard.samples} is broken") from error
    if read != shard.samples:
        raise ExperienceError(f"{path} holds {read} chunks, {INDEX_NAME} says {shard.samples}")


def iter_episodes(root: str | Path, split: str | None = None) -> Iterator[Rows]:
    """Whole episodes, as they were written.

    Args:
        root: folder of a recording.
        split: one split only; None for all.

    Raises:
        ExperienceError: the folder, or anything in it, is broken.
    """
    index = read_index(root)
    for shard in index.of(split) if split else index.shards:
        for _, rows in _shard_episodes(index, shard):
            yield rows


def _shard_episodes(index: Index, shard: Shard) -> Iterator[tuple[int, Rows]]:
    """(number, rows) of a shard's episodes, each held against the index."""
    pieces: list[Rows] = []
    expected = iter(shard.episodes)
    for key, members in read_chunks(index, shard):
        where = f"{index.root / shard.path}: chunk {key}"
        meta = decode_meta(members, where)
        if not pieces:
            number, length = next(expected, (-1, -1))
        have = sum(len(piece["is_first"]) for piece in pieces)
        if (meta.episode, meta.start) != (number, have):
            raise ExperienceError(f"{where} is step {meta.start} of episode {meta.episode}, the index disagrees")
        pieces.append(decode_chunk(members, index.spec, index.codec, where))
        if have + meta.length >= length:
            rows = {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}
            if check_episode(rows, index.spec, where) != length:
                raise ExperienceError(f"{where}: episode {number} is longer than the {length} steps of the index")
            yield number, rows
            pieces = []
    if pieces or next(expected, None):
        raise ExperienceError(f"{index.root / shard.path} lacks the end of an episode that {INDEX_NAME} names")


def verify(root: str | Path) -> Index:
    """Read and decode everything, and hold it against the index: hashes, counts, the contract, disjoint splits.

    Raises:
        ExperienceError: the first thing that is wrong.
    """
    index = read_index(root)
    seen: set[int] = set()
    for shard in index.shards:
        path = index.root / shard.path
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise ExperienceError(f"{path} is not the file that was recorded: its sha256 differs from the index")
        for number, _ in _shard_episodes(index, shard):
            if number in seen:
                raise ExperienceError(f"{path}: episode {number} occurs twice")
            seen.add(number)
    return index
