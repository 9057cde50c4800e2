"""Replay: a bounded memory of what several environments delivered, sampled uniformly over all starts of a sequence.

Each environment fills a *stream* of rows, episode after episode, kept in blocks; the oldest block is dropped when
there are more rows than the memory may hold. A sequence is a run of rows of one stream and may cross from one episode
into the next (``is_first`` marks where). Beside each row stand *latents*: the recurrent state that the policy had there,
which training replaces by its own, newer one.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from datamodules.experience import ExperienceError

Rows = dict[str, np.ndarray]
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]  # key -> shape and dtype of one row
KEPT = "kept-*.txt"  # lists of files


@dataclass
class Block:
    """Consecutive rows of a stream; arrays are allocated whole, the first ``size`` rows are filled."""

    rows: Rows
    latents: Rows
    size: int = 0
    rows_file: str | None = None  # where they were saved as they are now; None if they changed since
    latents_file: str | None = None


@dataclass
class Stream:
    """What one environment delivered. Rows are counted from its very first one, dropped or not."""

    blocks: list[Block] = field(default_factory=list)
    dropped: int = 0  # rows before the first block that is still there
    count: int = 0  # rows ever added

    @property
    def held(self) -> int:
        """Rows that are still there."""
        return self.count - self.dropped


class Replay:
    """See the module's text.

    Args:
        layout: key -> (shape, dtype) of a row.
        latents: the same of what is stored beside it; empty for a model without memory.
        streams: number of environments.
        length: rows of a sequence.
        capacity: most rows held, over all streams; rounded up to whole blocks.
        online: serve each new, non-overlapping sequence once before sampling, so that all that is new is seen at least once.
        seed: of the sampling.
        block: rows of a block.
    """

    def __init__(
        self,
        layout: Layout,
        latents: Layout,
        streams: int,
        length: int,
        capacity: int,
        online: bool = True,
        seed: int | np.random.SeedSequence = 0,
        block: int = 1024,
    ) -> None:
        self.layout, self.latent_layout = layout, latents
        self.length, self.capacity, self.online, self.block = length, capacity, online, block
        self.streams = [Stream() for _ in range(streams)]
        self.queue: deque[tuple[int, int]] = deque()  # (stream, first row) of new sequences
        self.generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        """Rows held."""
        return sum(stream.held for stream in self.streams)

    @property
    def row_bytes(self) -> int:
        """Memory of one row and its latents."""
        return sum(
            np.dtype(dtype).itemsize * math.prod(shape)
            for shape, dtype in (*self.layout.values(), *self.latent_layout.values())
        )

    @property
    def sequences(self) -> int:
        """Sequences that can be drawn."""
        return sum(self._starts())

    def add(self, stream: int, row: Mapping[str, Any], latents: Mapping[str, Any]) -> None:
        """Append one row to a stream; drops the oldest block if there are too many."""
        one = self.streams[stream]
        if not one.blocks or one.blocks[-1].size == self.block:
            one.blocks.append(self._new_block())
        last = one.blocks[-1]
        for arrays, values in ((last.rows, row), (last.latents, latents)):
            for key, array in arrays.items():
                array[last.size] = values[key]
        last.size += 1
        last.rows_file = last.latents_file = None
        one.count += 1
        if self.online and one.count % self.length == 0:
            self.queue.append((stream, one.count - self.length))
        while len(self) > self.capacity and self._drop_oldest():
            pass

    def rows(self, stream: int, start: int, stop: int) -> Rows | None:
        """Rows ``start`` to ``stop`` of a stream, key -> (L,...); None if some of them were dropped."""
        return self._rows(stream, start, stop) if start >= self.streams[stream].dropped else None

    def change_last(self, stream: int, values: Mapping[str, Any]) -> None:
        """Correct the newest row of a stream, when its episode turns out to have ended there."""
        last = self.streams[stream].blocks[-1]
        last.rows_file = None
        for key, value in values.items():
            last.rows[key][last.size - 1] = value

    def sample(self, batch: int) -> Rows:
        """Draw sequences.

        Returns:
            key -> (B,L,...), latents of the first row of each as ``latent_KEY`` (B,...), and ``stream`` and ``step`` (B,).

        Raises:
            ValueError: there is no whole sequence yet.
        """
        places = [self._draw() for _ in range(batch)]
        parts = [self._rows(stream, start, start + self.length) for stream, start in places]
        sequences = {key: np.stack([part[key] for part in parts]) for key in self.layout}
        first = [self._locate(stream, start) for stream, start in places]
        carry = {f"latent_{key}": np.stack([b.latents[key][i] for b, i in first]) for key in self.latent_layout}
        stream, step = np.array(places, np.int64).T
        return sequences | carry | {"stream": stream, "step": step}

    def write_back(self, stream: Sequence[int], step: Sequence[int], latents: Mapping[str, np.ndarray]) -> None:
        """Replace the latents of rows ``step`` to ``step + T`` of each stream; rows that were dropped meanwhile are passed over.

        Args:
            stream, step: (B,).
            latents: key -> (B,T,...).
        """
        for b, (s, start) in enumerate(zip(stream, step, strict=True)):
            steps = len(next(iter(latents.values()))[b])
            at = max(int(start), self.streams[s].dropped)
            while at < start + steps:
                block, offset = self._locate(s, at)
                n = min(self.block - offset, int(start) + steps - at)
                block.latents_file = None
                for key, array in block.latents.items():
                    array[offset : offset + n] = latents[key][b, at - start : at - start + n]
                at += n

    # ---- on the disk ---------------------------------------------------------------------------------------------

    def save(self, folder: Path, tag: str) -> dict[str, Any]:
        """Write what changed since the last save into new files, whose names end in ``tag``.

        Returns:
            Plain types that name all files and hold the state of the sampling; see :meth:`load`. Older files stay: a state
            that names them may still be the only safe one (see :meth:`tidy`).
        """
        folder.mkdir(parents=True, exist_ok=True)
        streams = []
        for s, stream in enumerate(self.streams):
            first = stream.dropped // self.block
            for b, block in enumerate(stream.blocks, first):
                if block.rows_file is None:
                    block.rows_file = _write(folder / f"rows-{s}-{b}-{tag}.npz", block.rows, block.size)
                if block.latents and block.latents_file is None:
                    block.latents_file = _write(folder / f"latents-{s}-{b}-{tag}.npz", block.latents, block.size)
            blocks = [(block.rows_file, block.latents_file, block.size) for block in stream.blocks]
            streams.append({"count": stream.count, "dropped": stream.dropped, "blocks": blocks})
        generator = json.dumps(self.generator.bit_generator.state)
        drawing = {"queue": list(self.queue), "generator": generator}
        return {"streams": streams, "block": self.block, "tag": tag} | drawing

    def load(self, folder: Path, state: Mapping[str, Any], own: bool = True) -> None:
        """Become what :meth:`save` wrote.

        Args:
            folder: where the files are.
            state: what :meth:`save` returned.
            own: the next save goes to the same folder, and so need not write again what lies there.

        Raises:
            ExperienceError: a file is missing or broken, or the state is of a replay with another number of streams.
        """
        if len(state["streams"]) != len(self.streams):
            raise ExperienceError(
                f"the replay in {folder} is of {len(state['streams'])} environments, not of {len(self.streams)}"
            )
        if state["block"] != self.block:
            raise ExperienceError(f"the replay in {folder} was made with another capacity: give that one")
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.count, stream.dropped, stream.blocks = saved["count"], saved["dropped"], []
            for rows_file, latents_file, size in saved["blocks"]:
                block = self._new_block()
                block.size, block.rows_file, block.latents_file = size, rows_file, latents_file
                for name, arrays in ((rows_file, block.rows), (latents_file, block.latents)):
                    if name is not None:
                        _read(folder / name, arrays, size)
                if not own:
                    block.rows_file = block.latents_file = None
                stream.blocks.append(block)
        self.queue = deque((stream, start) for stream, start in state["queue"])
        self.generator.bit_generator.state = json.loads(state["generator"])

    @staticmethod
    def keep(folder: Path, state: Mapping[str, Any]) -> None:
        """List the files that a state names in ``kept-TAG.txt``: as long as it lies there, :meth:`tidy` leaves them alone."""
        path = folder / f"kept-{state.get('tag', 'older')}.txt"
        with _whole_file(path) as file:
            file.write("\n".join(sorted(_named(state))).encode())

    @staticmethod
    def tidy(folder: Path, states: Sequence[Mapping[str, Any]]) -> None:
        """Delete the files that neither the states nor a list of kept ones names."""
        needed = {name for state in states for name in _named(state)}
        for path in folder.glob(KEPT):
            needed |= set(path.read_text().splitlines())
        for path in folder.glob("*.npz*"):
            if path.name not in needed:
                path.unlink()

    @staticmethod
    def is_complete(folder: Path, state: Mapping[str, Any]) -> bool:
        """Whether every file that a state names is there."""
        return all((folder / name).exists() for name in _named(state))

    # ---- where rows are ------------------------------------------------------------------------------------------

    def _starts(self) -> list[int]:
        return [max(0, stream.held - self.length + 1) for stream in self.streams]

    def _draw(self) -> tuple[int, int]:
        while self.queue:
            stream, start = self.queue.popleft()
            if self.streams[stream].dropped <= start <= self.streams[stream].count - self.length:
                return stream, start
        starts = np.cumsum(self._starts())
        if not starts[-1]:
            raise ValueError(f"no stream holds {self.length} rows yet")
        at = int(self.generator.integers(starts[-1]))
        stream = int(np.searchsorted(starts, at, side="right"))
        before = int(starts[stream - 1]) if stream else 0
        return stream, self.streams[stream].dropped + at - before

    def _locate(self, stream: int, row: int) -> tuple[Block, int]:
        number, offset = divmod(row - self.streams[stream].dropped, self.block)
        return self.streams[stream].blocks[number], offset

    def _rows(self, stream: int, start: int, stop: int) -> Rows:
        parts = []
        while start < stop:
            block, offset = self._locate(stream, start)
            n = min(self.block - offset, stop - start)
            parts.append({key: array[offset : offset + n] for key, array in block.rows.items()})
            start += n
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _new_block(self) -> Block:
        def empty(layout: Layout) -> Rows:
            return {key: np.zeros((self.block, *shape), dtype) for key, (shape, dtype) in layout.items()}

        return Block(empty(self.layout), empty(self.latent_layout))

    def _drop_oldest(self) -> bool:
        """Drop the first block of the stream that holds most; False if that one is still being filled."""
        longest = max(self.streams, key=lambda stream: stream.held)
        if len(longest.blocks) < 2:
            return False
        longest.blocks.pop(0)
        longest.dropped += self.block
        return True


def _write(path: Path, arrays: Rows, size: int) -> str:
    """The first ``size`` rows to a file that is there wholly or not at all; returns its name."""
    with _whole_file(path) as file:
        np.savez(file, **{key: array[:size] for key, array in arrays.items()})
    return path.name


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """To write to; at ``path`` once all of it is on the disk."""
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _named(state: Mapping[str, Any]) -> set[str]:
    """The files of a state."""
    return {name for stream in state["streams"] for block in stream["blocks"] for name in block[:2] if name}


def _read(path: Path, arrays: Rows, size: int) -> None:
    """Fill the first ``size`` rows from a file.

    Raises:
        ExperienceError: it is missing, broken, or holds something else.
    """
    try:
        with np.load(path) as saved:
            for key, array in arrays.items():
                array[:size] = saved[key]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ExperienceError(f"{path} cannot be read ({error}): the run cannot go on with its replay") from error
