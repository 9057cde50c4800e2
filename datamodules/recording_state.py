"""Where a recording stood when a checkpoint was written, held against what its folder holds now.

A run may go back to an earlier checkpoint and go on otherwise. Names and sizes of files would not tell the two
recordings apart, so a state (:meth:`datamodules.shards.ShardWriter.state`) also holds hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.index import INDEX_NAME, SHARD_NAME, read_index

TAR_END = 1024  # two zero blocks end a tar file


def part_of(target: Path) -> Path:
    """The name of a shard while it is being written, at which no reader looks."""
    return target.with_name(f".{target.name}.part")


def hash_of_start(path: Path, size: int) -> Any:
    """A running sha256 of the first ``size`` bytes of a file; of fewer where it is shorter."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size and (data := file.read(min(size, 1 << 20))):
            digest.update(data)
            size -= len(data)
    return digest


def lost(root: Path, state: Mapping[str, Any]) -> str | None:
    """What a state names and the folder no longer holds, as a line that says so; None if all of it is there.

    Raises:
        ExperienceError: the folder's index is broken, or a shard that it names.
    """
    there = {shard.path: shard.sha256 for shard in read_index(root).shards} if (root / INDEX_NAME).exists() else {}
    hashes = state.get("sha256", {})  # states of earlier versions have none: they cannot be told from others
    for path in state["finished"]:
        if path not in there:
            return f"{root / path} is missing"
        if there[path] != hashes.get(path):
            return f"{root / path} holds other episodes than it did"
    for opened in state["open"].values():
        target = root / opened["path"]
        file = target if target.exists() else part_of(target)
        if not file.exists() or file.stat().st_size < opened["bytes"]:
            return f"{file} is missing or too short"
        if hash_of_start(file, opened["bytes"]).hexdigest() != hashes.get(opened["path"]):
            return f"{file} holds other episodes than it did"
    return None


def holds_more(root: Path, state: Mapping[str, Any]) -> bool:
    """Whether anything was recorded after a state of which nothing is lost. That a shard was finished since is nothing."""
    opened = {shard["path"]: shard["bytes"] for shard in state["open"].values()}
    for path in root.iterdir() if root.is_dir() else ():
        name = path.name.removeprefix(".").removesuffix(".part")
        if SHARD_NAME.fullmatch(name) is None or name in state["finished"]:
            continue
        if path.stat().st_size not in (opened.get(name), opened.get(name, -TAR_END) + TAR_END):
            return True
    return False
