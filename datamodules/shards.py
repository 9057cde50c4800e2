"""Episodes to WebDataset shards; the way back is in ``shard_reading.py``.

An episode is cut into chunks of at most ``chunk_steps`` steps; all its chunks lie behind each other in one tar file.
A shard becomes visible (renamed, then named by ``index.json``) only when it is complete and on the disk, so a crash,
a kill or a full disk at any moment leaves a folder that reads without error and holds everything finished before.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import webdataset as wds

from datamodules.codec import ChunkMeta, Rows, check_codec, encode_chunk
from datamodules.experience import ExperienceError, ExperienceSpec, check_chunks, check_episode
from datamodules.index import INDEX_NAME, Index, Shard, Source, read_index, sync_folder, write_index
from datamodules.recording_folder import is_ours, prepare, swap
from datamodules.recording_state import TAR_END, hash_of_start, lost, part_of
from datamodules.shard_reading import iter_episodes, read_chunks, verify

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
    sources: list[Source] = field(default_factory=list)
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

    @property
    def chunk_steps(self) -> int:
        """The most steps of a chunk: as asked for, or as many as a WebP strip holds."""
        return self._index.chunk_steps

    def write_episode(self, rows: Rows) -> None:
        """Check one whole episode and write it.

        Raises:
            ExperienceError: it breaks the contract, or the disk is full (the message says what is safe).
        """
        where = f"episode {self._episodes}"
        length = check_episode(rows, self._index.spec, where)
        starts = range(0, length, self.chunk_steps)
        self._write(({key: rows[key][i : i + self.chunk_steps] for key in rows} for i in starts), None, self._episodes)

    def write_chunks(self, chunks: Iterable[Rows], source: Source, group: int) -> int:
        """Write one episode chunk by chunk, for what does not fit into memory. Cut short by any error, it leaves no trace.

        Args:
            chunks: of at most ``chunk_steps`` steps each, in order; the next is asked for when the last is written.
            source: where the episode comes from.
            group: takes the place of the episode's number in choosing its split, so that equal groups are never split.

        Returns:
            Steps.

        Raises:
            ExperienceError: as :meth:`write_episode`.
        """
        where = f"episode {self._episodes} ({source.file})"
        return self._write(check_chunks(chunks, self._index.spec, where), source, group)

    def _write(self, chunks: Iterable[Rows], source: Source | None, group: int) -> int:
        rest = group % self._holdout if self._holdout else 0
        split, number = {1: "val", 2: "test"}.get(rest, "train"), self._episodes
        size = length = samples = 0
        with self._or_give_up():
            shard = self._open.get(split) or self._start(split)
            shard.file.seek(shard.bytes)  # behind it may lie what an episode left that was cut short
        digest = shard.digest.copy()
        for rows in chunks:  # whatever goes wrong in making them is none of ours
            data = self._encode(rows, number, length)
            with self._or_give_up():
                _write_all(shard.file, data)
            digest.update(data)
            size, length, samples = size + len(data), length + len(rows["is_first"]), samples + 1
        shard.bytes += size
        shard.digest = digest
        shard.samples += samples
        shard.episodes.append((number, length))
        shard.sources += [source] if source else []
        self._episodes += 1
        if shard.steps >= self._shard_steps:
            with self._or_give_up():
                self._finish(split)
        return length

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
            index = replace(self._index, complete=True)
            with self._or_give_up():
                write_index(index)
            self._index = index
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
                "sources": [vars(source) for source in shard.sources],
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
            sources = [Source(**source) for source in opened.get("sources", ())]
            digest = hash_of_start(part, size)
            self._open[split] = _OpenShard(target, part, file, size, opened["samples"], episodes, sources, digest)
        known = {INDEX_NAME, *state["finished"], *(shard.part.name for shard in self._open.values())}
        for path in self.root.iterdir():
            if path.name not in known and is_ours(path.name):
                path.unlink()

    def _encode(self, rows: Rows, number: int, start: int) -> bytes:
        """A chunk as a piece of a tar file without the end mark."""
        file, meta = io.BytesIO(), ChunkMeta(number, start, len(rows["is_first"]))
        if meta.length > self.chunk_steps:
            raise ExperienceError(f"episode {number}: a chunk of {meta.length} steps, at most {self.chunk_steps} fit")
        if bool(self._index.spec.factors) != ("state" in rows):
            raise ExperienceError(f"episode {number}: 'state' must be there exactly if the description names factors")
        tar = wds.TarWriter(file, encoder=False, mtime=0)  # no clock in it: equal episodes give equal bytes
        tar.write({"__key__": meta.key, **encode_chunk(rows, meta, self._index.spec, self._index.codec)})
        size = tar.tarstream.offset
        tar.close()
        return file.getvalue()[:size]

    def _start(self, split: str) -> _OpenShard:
        target = self._folder / f"{split}-{len(self._index.of(split)):06d}.tar"
        part = part_of(target)
        self._open[split] = _OpenShard(target, part, open(part, "wb", buffering=0))  # noqa: SIM115 (closed by _finish)
        return self._open[split]

    def _finish(self, split: str) -> None:
        """Make an open shard durable, then visible, then part of the index. May be called again after it failed."""
        shard = self._open[split]
        if not shard.episodes:
            return self._drop(split)
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
        done = Shard(
            shard.target.name,
            split,
            shard.samples,
            shard.steps,
            size,
            digest,
            tuple(shard.episodes),
            tuple(shard.sources),
        )
        index = replace(self._index, shards=(*self._index.shards, done))
        write_index(index)
        self._index = index
        del self._open[split]

    def _finish_all(self) -> None:
        with self._or_give_up():
            for split in list(self._open):
                self._finish(split)

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._give_up(error)

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
