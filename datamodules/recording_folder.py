"""The folder of a recording: what may be written into, whether it holds what is wanted, and how a new recording takes the
place of an old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

from datamodules.experience import ExperienceError
from datamodules.index import INDEX_NAME, SHARD_NAME, Index, require_no_lost_index, sync_folder


@dataclass(frozen=True)
class Recording:
    """What was recorded: the folder, how many episodes, steps (rows) and bytes, in how many seconds."""

    root: Path
    episodes: int
    steps: int
    bytes: int
    seconds: float

    @classmethod
    def of(cls, out: str | Path, index: Index, seconds: float, **more: Any) -> Self:
        """Counts of what the index of ``out`` names; ``more`` for the fields of a subclass."""
        shards = index.shards
        episodes, steps = sum(len(shard.episodes) for shard in shards), sum(shard.steps for shard in shards)
        return cls(Path(out), episodes, steps, sum(shard.bytes for shard in shards), seconds, **more)


def require_same(out: str | Path, wanted: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse a recording that is another one than is wanted.

    Args:
        out: its folder.
        wanted: (name of a setting, what is there, what is wanted).

    Raises:
        ExperienceError: naming the first setting that differs.
    """
    for name, there, value in wanted:
        if there not in (value, None):  # None: what an index of an older version does not say
            raise ExperienceError(
                f"{out} holds a recording with {name} {there}, not {value}: choose another folder, or replace it with"
                " --overwrite"
            )


def prepare(root: Path, overwrite: bool) -> Path:
    """The folder to write into: ``root``, or a sibling of it while an old recording is in its place."""
    if root.exists() and not root.is_dir():
        raise ExperienceError(f"{root} is a file: --out names a folder")
    found = sorted(path.name for path in root.iterdir()) if root.exists() else []
    foreign = [name for name in found if not is_ours(name)]
    if foreign:
        raise ExperienceError(f"{root} holds '{foreign[0]}', which is no recording: choose another folder")
    if INDEX_NAME not in found:
        require_no_lost_index(root, found)
        root.mkdir(parents=True, exist_ok=True)
        for name in found:  # .part files, left by a writer that was killed before its first shard was complete
            (root / name).unlink()
        return root
    if not overwrite:
        raise ExperienceError(f"{root} already holds a recording: choose another folder, or overwrite it on purpose")
    folder = root.with_name(f".{root.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def next_to(root: Path) -> Path:
    """The first of ``root``, ``root-2``, ``root-3`` ... that is not there."""
    others = (root.with_name(f"{root.name}-{n}") for n in count(2))
    return next(path for path in chain([root], others) if not path.exists())


def forget(root: Path) -> None:
    """Delete the files of a recording, and nothing else."""
    for path in root.iterdir() if root.is_dir() else ():
        if is_ours(path.name):
            path.unlink()


def is_ours(name: str) -> bool:
    """Whether a file of this name is a recording's: its index, a shard, or one of them being written."""
    bare = name[1 : -len(".part")] if name.startswith(".") and name.endswith(".part") else name
    return bare == INDEX_NAME or SHARD_NAME.fullmatch(bare) is not None


def swap(new: Path, root: Path) -> None:
    """Put a finished recording into the place of an old one, which is gone only when the new one is there."""
    old = root.with_name(f".{root.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(root, old)
    os.rename(new, root)
    sync_folder(root.parent)
    shutil.rmtree(old)
