"""``index.json``: what a folder of shards holds. Whoever reads shards reads this first, and is stopped here by a broken folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from datamodules.codec import CODECS
from datamodules.experience import ExperienceError, ExperienceSpec

INDEX_FORMAT = 1
INDEX_NAME = "index.json"
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")


@dataclass(frozen=True)
class Source:
    """The file that an episode was made from, by its name inside the folder that was converted, and where in it it begins."""

    file: str
    seconds: float


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        path: file name inside the folder.
        split: ``train``, ``val`` or ``test``.
        samples: chunks.
        steps: steps of all its episodes.
        bytes: size of the file.
        sha256: of the file.
        episodes: (number of the episode, its steps), ascending, as they lie in the file.
        sources: of each of these episodes, where it was made from a file; else empty.
    """

    path: str
    split: str
    samples: int
    steps: int
    bytes: int
    sha256: str
    episodes: tuple[tuple[int, int], ...]
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "episodes", tuple((int(number), int(steps)) for number, steps in self.episodes))
        numbers = [number for number, _ in self.episodes]
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise ExperienceError(f"{self.path}: its episodes are not in ascending order: record again")
        if not SHARD_NAME.fullmatch(self.path) or not self.path.startswith(f"{self.split}-"):
            raise ExperienceError(f"'{self.path}' is not the name of a {self.split} shard")
        if self.sources and len(self.sources) != len(self.episodes):
            raise ExperienceError(f"{self.path}: {len(self.sources)} sources of {len(self.episodes)} episodes")
        if self.steps != sum(steps for _, steps in self.episodes):
            raise ExperienceError(f"{self.path}: {self.steps} steps, but its episodes sum up to another number")

    def to_dict(self) -> dict[str, Any]:
        """What ``index.json`` holds of it."""
        sources = {"sources": [vars(source) for source in self.sources]} if self.sources else {}
        return {key: value for key, value in vars(self).items() if key != "sources"} | sources


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds.

    Args:
        root: the folder.
        spec: shapes and names.
        shards: the tar files.
        codec: how pictures are stored, ``webp`` or ``npz``.
        chunk_steps: the most steps a chunk holds.
        environment: the environment and its settings.
        policy: who acted.
        seed: of the recording.
        complete: the recording ended as it should; False while it goes on, and for what an interrupt or a kill left.
        num_envs: environments that were played side by side; None where an older version did not write it.
        holdout: of so many episodes one is in ``val`` and one in ``test``; None likewise.
    """

    root: Path
    spec: ExperienceSpec
    shards: tuple[Shard, ...]
    codec: str
    chunk_steps: int
    environment: dict[str, Any]
    policy: str
    seed: int
    complete: bool = True
    num_envs: int | None = None
    holdout: int | None = None

    @property
    def data_hash(self) -> str:
        """One hash over the hashes of all shards: equal for equal data."""
        return data_hash(self.shards)

    @property
    def splits(self) -> dict[str, dict[str, int]]:
        """Split -> its number of episodes, samples (chunks) and steps."""
        return {
            split: {
                "episodes": sum(len(shard.episodes) for shard in self.of(split)),
                "samples": sum(shard.samples for shard in self.of(split)),
                "steps": sum(shard.steps for shard in self.of(split)),
            }
            for split in SPLITS
        }

    def of(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split.

        Raises:
            ExperienceError: there is no such split.
        """
        if split not in SPLITS:
            raise ExperienceError(f"split '{split}' is not one of {', '.join(SPLITS)}")
        return tuple(shard for shard in self.shards if shard.split == split)

    def to_dict(self) -> dict[str, Any]:
        """What ``index.json`` holds."""
        return {
            "format": INDEX_FORMAT,
            "spec": self.spec.to_dict(),
            "environment": self.environment,
            "policy": self.policy,
            "seed": self.seed,
            "complete": self.complete,
            "num_envs": self.num_envs,
            "holdout": self.holdout,
            "codec": self.codec,
            "chunk_steps": self.chunk_steps,
            "splits": self.splits,
            "data_hash": self.data_hash,
            "shards": [shard.to_dict() for shard in self.shards],
        }


def data_hash(shards: tuple[Shard, ...]) -> str:
    """sha256 over the names and hashes of the shards, whatever their order."""
    lines = sorted(f"{shard.path} {shard.sha256}\n" for shard in shards)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_index(index: Index) -> None:
    """Write ``index.json`` so that at every moment either the old or the new one is there, whole.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    target = index.root / INDEX_NAME
    part = target.with_name(f".{INDEX_NAME}.part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump(index.to_dict(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, target)
    sync_folder(index.root)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_index(root: str | Path) -> Index:
    """Read ``index.json`` and check that every shard it names is there at its full size.

    Raises:
        ExperienceError: the folder is missing or empty, the index is broken, of another format or contradicts itself,
            or a shard is missing or truncated.
    """
    root = Path(root).absolute()
    path = root / INDEX_NAME
    if not root.exists():
        raise ExperienceError(f"no recording at {root}: make one with `lit-wm record --env ... --out {root}`")
    if not root.is_dir():
        raise ExperienceError(f"{root} is a file: root names the folder that holds {INDEX_NAME}")
    if not path.exists():
        names = [file.name for file in root.iterdir()]
        require_no_lost_index(root, names)
        state = f"holds no {INDEX_NAME}" if names else "is empty"
        raise ExperienceError(f"{root} {state}: record into it with `lit-wm record --env ... --out {root}`")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ExperienceError(f"{path} cannot be read ({error}): record again with `lit-wm record`") from error
    if not isinstance(plain, dict) or plain.get("format") != INDEX_FORMAT:
        found = plain.get("format") if isinstance(plain, dict) else None
        raise ExperienceError(f"{path} has format {found}, this version reads {INDEX_FORMAT}: record again")
    index = _from_dict(plain, root, path)
    for shard in index.shards:
        file = root / shard.path
        if not file.exists():
            raise ExperienceError(f"{file} is missing, but {INDEX_NAME} names it: restore it or record again")
        if (size := file.stat().st_size) != shard.bytes:
            what = "truncated" if size < shard.bytes else "not the recorded one"
            raise ExperienceError(
                f"{file} is {what}: {size} bytes, {INDEX_NAME} says {shard.bytes}: restore it or record again"
            )
    return index


def require_no_lost_index(root: Path, names: Iterable[str]) -> None:
    """Refuse a folder without ``index.json`` whose files ``names`` are finished shards: someone may still want them."""
    if any(SHARD_NAME.fullmatch(name) for name in names):
        raise ExperienceError(
            f"{root} holds shards, but their {INDEX_NAME} is missing: restore it, or choose another folder"
        )


def _from_dict(plain: dict[str, Any], root: Path, path: Path) -> Index:
    try:
        spec = ExperienceSpec.from_dict(_typed(plain, "spec", dict))
        shards = tuple(_shard(shard) for shard in _typed(plain, "shards", list))
        index = Index(
            root,
            spec,
            shards,
            _typed(plain, "codec", str),
            _typed(plain, "chunk_steps", int),
            _typed(plain, "environment", dict),
            _typed(plain, "policy", str),
            _typed(plain, "seed", int),
            _typed({"complete": True} | plain, "complete", bool),  # versions before this key wrote no word about it
            *(None if plain.get(key) is None else _typed(plain, key, int) for key in ("num_envs", "holdout")),
        )
        claims = plain["splits"], plain["data_hash"]
    except ExperienceError as error:
        raise ExperienceError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ExperienceError(f"{path} is broken at {error}: restore it or record again") from error
    if index.codec not in CODECS:
        raise ExperienceError(f"{path}: codec '{index.codec}' is not one of {', '.join(CODECS)}")
    if claims != (index.splits, index.data_hash):
        raise ExperienceError(f"{path} contradicts itself: its sums differ from its list of shards")
    if not shards:
        raise ExperienceError(f"{path} names no shards: record again with `lit-wm record`")
    return index


def _shard(plain: Any) -> Shard:
    if not isinstance(plain, dict):
        raise ExperienceError(f"'shards' holds {plain!r}, expected an object")
    kinds = {"path": str, "split": str, "samples": int, "steps": int, "bytes": int, "sha256": str, "episodes": list}
    shard = {key: _typed(plain, key, kind) for key, kind in kinds.items()}
    for pair in shard["episodes"]:
        fits = isinstance(pair, list) and [type(number) for number in pair] == [int, int]
        if not fits or pair[0] < 0 or pair[1] < 1:
            raise ExperienceError(f"'episodes' of {shard['path']} holds {pair!r}, expected [number, steps]")
    return Shard(**shard, sources=tuple(_source(source, shard["path"]) for source in plain.get("sources", ())))


def _source(plain: Any, path: str) -> Source:
    """A source that ``index.json`` names, of a shard at ``path``."""
    if not isinstance(plain, dict):
        raise ExperienceError(f"'sources' of {path} holds {plain!r}, expected an object")
    return Source(_typed(plain, "file", str), _typed(plain, "seconds", float))


def _typed(plain: dict[str, Any], key: str, kind: type) -> Any:
    """``plain[key]``, if it is of that type exactly: true is no number."""
    if type(plain[key]) is not kind:
        raise ExperienceError(f"'{key}' is {plain[key]!r}, expected {kind.__name__}: restore it or record again")
    return plain[key]
