"""Episodes to WebDataset shards and back.

An episode is cut into chunks of at most ``chunk_steps`` steps; all its chunks lie behind each other in one tar file.
A shard becomes visible (renamed, then named by ``index.json``) only when it is complete and on the disk, so a crash,
a kill or a full disk at any moment leaves a folder that reads without error and holds everything finished before.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import webdataset as wds
from webdataset.tariterators import group_by_keys, tar_file_expander, url_opener

from datamodules.codec import ChunkMeta, Rows, check_codec, decode_chunk, decode_meta, encode_chunk
from datamodules.experience import ExperienceError, ExperienceSpec, check_episode
from datamodules.index import (
    INDEX_NAME,
    Index,
    Shard,
    read_index,
    sync_folder,
    write_index,
)
from datamodules.recording_folder import is_ours, prepare, swap
from datamodules.recording_state import TAR_END, hash_of_start, lost, part_of

__all__ = ["Index", "Shard", "ShardWriter", "iter_episodes", "read_chunks", "read_index", "verify"]


@dataclass
class _OpenShard:
    """A shard being written to ``part``, a name that no reader looks at, until it is renamed to ``target``."""

    target: Path
    part: Path
    file: BinaryIO
    bytes: int = 0  # of the whole episodes in the file; what lies behind is a torn one
    samples: int = 0
    episodes: list[tuple[int, int]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)  # of these bytes

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.episodes)


class ShardWriter:
    """Writes episodes as shards; a context manager.

    Episode ``i`` goes to ``val`` where ``i % holdout == 1``, to ``test`` where it is 2, else to ``train``.
    Leaving the context on an exception keeps every whole episode written so far, as a recording that is not
    ``complete``; with ``overwrite`` it keeps the old recording instead.

    Args:
        root: folder to write to; made if it is missing.
        spec: what the episodes look like.
        environment: the environment and its settings, plain JSON types.
        policy: who acts.
        seed: of the recording.
        num_envs: environments that are played side by side, where that is known.
        codec: ``webp`` (lossless strips) or ``npz`` (deflate).
        chunk_steps: most steps of a chunk; a WebP strip caps it at 16383 // picture height.
        shard_steps: a shard is closed when it holds at least so many steps.
        holdout: of so many episodes one is held out for ``val`` and one for ``test``; 0 holds out none.
        overwrite: replace an earlier recording, once the new one is complete.
        resume: the :meth:`state` of a writer of this folder to go on from; what it wrote after that is forgotten.

    Raises:
        ExperienceError: ``root`` already holds something, an argument cannot work, or what ``resume`` names is no longer
            there as it was.
    """

    def __init__(
        self,
        root: str | Path,
        spec: ExperienceSpec,
        *,
        environment: dict[str, Any],
        policy: str,
        seed: int,
        num_envs: int | None = None,
        codec: str = "webp",
        chunk_steps: int = 128,
        shard_steps: int = 4096,
        holdout: int = 10,
        overwrite: bool = False,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        if holdout and holdout < 3:
            raise ExperienceError(f"holdout is {holdout}: it must be 0 (hold out nothing) or at least 3")
        self.root = Path(root).absolute()
        chunk_steps = check_codec(spec, codec, chunk_steps)
        self._shard_steps, self._holdout = shard_steps, holdout
        try:
            self._folder = prepare(self.root, overwrite) if resume is None else self.root
        except OSError as error:
            raise ExperienceError(f"cannot write to {self.root}: {error.strerror or error}") from error
        made = dict(environment), str(policy), int(seed)
        self._index = Index(self._folder, spec, (), codec, chunk_steps, *made, False, num_envs, holdout)
        self._open: dict[str, _OpenShard] = {}
        self._episodes = 0
        self._failed = False
        if resume is not None:
            self._take_up(resume)

    @property
    def episodes(self) -> int:
        """Episodes written so far, finished shards or not."""
        return self._episodes

    @property
    def safe_steps(self) -> int:
        """Steps in finished shards: what a crash now would leave."""
        return sum(shard.steps for shard in self._index.shards)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._failed:
            return  # all is settled, and the message on its way
        elif self._folder != self.root:
            self._discard()
        else:
            self._finish_all()

    def write_episode(self, rows: Mapping[str, np.ndarray]) -> None:
        """Check one whole episode and write it.

        Raises:
            ExperienceError: it breaks the contract, or the disk is full (the message says what is safe).
        """
        spec, number = self._index.spec, self._episodes
        where = f"episode {number}"
        length = check_episode(rows, spec, where)
        if bool(spec.factors) != ("state" in rows):
            raise ExperienceError(f"{where}: 'state' must be there exactly if the description names factors")
        rest = number % self._holdout if self._holdout else 0
        split = {1: "val", 2: "test"}.get(rest, "train")
        data, samples = self._encode(rows, number, length)
        try:
            shard = self._open.get(split) or self._start(split)
            _write_all(shard.file, data)
            shard.bytes += len(data)
            shard.digest.update(data)
            shard.samples += samples
            shard.episodes.append((number, length))
            self._episodes += 1
            if shard.steps >= self._shard_steps:
                self._finish(split)
        except OSError as error:
            self._give_up(error)

    def close(self) -> Index | None:
        """Finish all shards and call them complete; with ``overwrite``, put the new folder into the place of the old one.

        Returns:
            The index, or None if no episode was written.

        Raises:
            ExperienceError: the disk is full (the message says what is safe).
        """
        if self._failed:
            return None
        self._finish_all()
        if not self._index.shards:
            return None
        if not self._index.complete:
            self._set_complete()
        if self._folder != self.root:
            swap(self._folder, self.root)
            self._folder = self.root
        return read_index(self.root)

    def state(self) -> dict[str, Any]:
        """Where the recording stands, in plain types, once all of it is on the disk; for ``resume``."""
        for shard in self._open.values():
            os.fsync(shard.file.fileno())
        sync_folder(self._folder)
        opened = {
            split: {
                "path": shard.target.name,
                "bytes": shard.bytes,
                "samples": shard.samples,
                "episodes": list(shard.episodes),
            }
            for split, shard in self._open.items()
        }
        hashes = {shard.path: shard.sha256 for shard in self._index.shards}
        hashes |= {shard.target.name: shard.digest.hexdigest() for shard in self._open.values()}
        return {
            "folder": self.root.name,
            "finished": [shard.path for shard in self._index.shards],
            "open": opened,
            "sha256": hashes,
            "episodes": self._episodes,
        }

    def _take_up(self, state: Mapping[str, Any]) -> None:
        """Make the folder what it was at ``state``. Killed on the way, it can be done again."""
        if gone := lost(self.root, state):
            raise ExperienceError(f"{gone}: the recording cannot be gone on with")
        self._episodes = state["episodes"]
        if state["finished"]:
            there = {shard.path: shard for shard in read_index(self.root).shards}
            self._index = replace(self._index, shards=tuple(there[path] for path in state["finished"]))
            write_index(self._index)
        else:
            (self.root / INDEX_NAME).unlink(missing_ok=True)
        for split, opened in state["open"].items():
            target, size = self.root / opened["path"], opened["bytes"]
            part = part_of(target)
            if target.exists():  # finished after that state
                os.replace(target, part)
            file = open(part, "r+b", buffering=0)  # noqa: SIM115 (closed by _finish)
            file.truncate(size)
            file.seek(size)
            episodes = [(number, steps) for number, steps in opened["episodes"]]
            digest = hash_of_start(part, size)
            self._open[split] = _OpenShard(target, part, file, size, opened["samples"], episodes, digest)
        known = {INDEX_NAME, *state["finished"], *(shard.part.name for shard in self._open.values())}
        for path in self.root.iterdir():
            if path.name not in known and is_ours(path.name):
                path.unlink()

    def _encode(self, rows: Mapping[str, np.ndarray], number: int, length: int) -> tuple[bytes, int]:
        """An episode as a piece of a tar file without the end mark, and its number of chunks."""
        file, starts = io.BytesIO(), range(0, length, self._index.chunk_steps)
        tar = wds.TarWriter(file, encoder=False, mtime=0)  # no clock in it: equal episodes give equal bytes
        for start in starts:
            chunk = {key: rows[key][start : start + self._index.chunk_steps] for key in rows}
            meta = ChunkMeta(number, start, len(chunk["reward"]))
            members = encode_chunk(chunk, meta, self._index.spec, self._index.codec)
            tar.write({"__key__": meta.key, **members})
        size = tar.tarstream.offset
        tar.close()
        return file.getvalue()[:size], len(starts)

    def _start(self, split: str) -> _OpenShard:
        target = self._folder / f"{split}-{len(self._index.of(split)):06d}.tar"
        part = part_of(target)
        self._open[split] = _OpenShard(target, part, open(part, "wb", buffering=0))  # noqa: SIM115 (closed by _finish)
        return self._open[split]

    def _finish(self, split: str) -> None:
        """Make an open shard durable, then visible, then part of the index. May be called again after it failed."""
        shard = self._open[split]
        shard.file.close()
        if shard.part.exists():
            with open(shard.part, "r+b", buffering=0) as file:
                file.truncate(shard.bytes)
                file.seek(shard.bytes)
                _write_all(file, bytes(TAR_END))
                os.fsync(file.fileno())
            os.replace(shard.part, shard.target)
        with open(shard.target, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = shard.bytes + TAR_END
        done = Shard(shard.target.name, split, shard.samples, shard.steps, size, digest, tuple(shard.episodes))
        index = replace(self._index, shards=(*self._index.shards, done))
        write_index(index)
        self._index = index
        del self._open[split]

    def _finish_all(self) -> None:
        try:
            for split in list(self._open):
                self._finish(split)
        except OSError as error:
            self._give_up(error)

    def _set_complete(self) -> None:
        index = replace(self._index, complete=True)
        try:
            write_index(index)
        except OSError as error:
            self._give_up(error)
        self._index = index

    def _give_up(self, error: OSError) -> NoReturn:
        """Finish what can be finished: cutting off a torn episode, or dropping a whole shard, frees some space."""
        self._failed = True
        for split in list(self._open):
            try:
                self._finish(split)
            except OSError:
                self._drop(split)
        kept = f"{self.safe_steps} steps are safe in {self.root}"
        if self._folder != self.root:
            self._discard()
            kept = f"the old recording in {self.root} is untouched"
        raise ExperienceError(f"writing to {self.root} failed ({error.strerror or error}): {kept}") from error

    def _drop(self, split: str) -> None:
        shard = self._open.pop(split)
        shard.file.close()
        shard.part.unlink(missing_ok=True)
        shard.target.unlink(missing_ok=True)

    def _discard(self) -> None:
        for split in list(self._open):
            self._drop(split)
        shutil.rmtree(self._folder)


def _write_all(file: BinaryIO, data: bytes) -> None:
    """An unbuffered file may take less than it is given, and says so only when it is given the rest."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


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
        have = sum(len(piece["reward"]) for piece in pieces)
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
