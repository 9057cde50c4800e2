"""A chunk of steps to the members of a tar file and back, without loss and without pickle.

A chunk becomes ``<picture>.webp`` (or ``.npz``) for each picture key, ``steps.npz`` for every other array, and
``meta.json``. A WebP member is one picture: the frames of the chunk laid under each other, (T*H, W, C).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from datamodules.experience import ExperienceError, ExperienceSpec, check_rows

CODECS = ("webp", "npz")
WEBP_LIMIT = 16383  # the format holds 14 bits per side
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class ChunkMeta:
    """Where a chunk lies: steps ``start`` to ``start + length`` of episode ``episode``."""

    episode: int
    start: int
    length: int

    @property
    def key(self) -> str:
        """Name of the chunk's members in its shard, less the extensions; tar guards it with a checksum."""
        return f"{self.episode:06d}-{self.start:06d}"


def check_codec(spec: ExperienceSpec, codec: str, chunk_steps: int) -> int:
    """Check that a codec can hold the pictures of ``spec``.

    Returns:
        The steps a chunk may hold: ``chunk_steps``, or as many as fit into the 16383 rows of a WebP picture.

    Raises:
        ExperienceError: naming the codec or the picture key.
    """
    if codec not in CODECS:
        raise ExperienceError(f"codec '{codec}' is not one of {', '.join(CODECS)}")
    if chunk_steps < 1:
        raise ExperienceError(f"chunk_steps is {chunk_steps}, it must be at least 1")
    for key in spec.pictures:
        height, width, channels = spec.observations[key]
        if not re.fullmatch(r"\w+", key) or key in ("steps", "meta"):
            raise ExperienceError(f"picture key '{key}' cannot name a tar member: use letters, digits and _")
        if codec == "webp" and (channels not in (1, 3) or max(height, width) > WEBP_LIMIT):
            raise ExperienceError(
                f"'{key}' of {height}x{width}x{channels} does not fit WebP (1 or 3 channels, at most {WEBP_LIMIT}"
                " pixels a side): use codec 'npz'"
            )
        if codec == "webp":
            chunk_steps = min(chunk_steps, WEBP_LIMIT // height)
    return chunk_steps


def encode_webp(frames: np.ndarray) -> bytes:
    """(T,H,W,C) uint8 to one lossless WebP strip. A single channel is stored three times, which costs next to nothing.

    Method 0 with quality (here: effort) 80: higher methods save a third and take two to four times as long to write, and
    deflate takes three to four times the space (``python -m datamodules.measure_codecs ROOT``).
    """
    steps, height, width, channels = frames.shape
    strip = np.ascontiguousarray(frames).reshape(steps * height, width, channels)
    file = io.BytesIO()
    Image.fromarray(np.repeat(strip, 3 // channels, 2)).save(file, "WEBP", lossless=True, quality=80, method=0)
    return file.getvalue()


def decode_webp(data: bytes, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The inverse of :func:`encode_webp`; ``shape`` is (T,H,W,C)."""
    steps, height, width, channels = shape
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as picture:
        if picture.size != (width, steps * height):
            found = f"{picture.size[1]}x{picture.size[0]}"
            raise ValueError(f"the strip is {found}, expected {steps} frames of {height}x{width}")
        if picture.mode != "RGB":
            raise ValueError(f"the strip has channels {picture.mode}, expected RGB")
        strip = np.asarray(picture)
    return np.ascontiguousarray(strip.reshape(steps, height, width, 3)[..., :channels])


def encode_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Deflated numpy arrays; the same arrays always give the same bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def decode_npz(data: bytes) -> Rows:
    """The inverse of :func:`encode_npz`; refuses pickled objects."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def encode_chunk(rows: Mapping[str, np.ndarray], meta: ChunkMeta, spec: ExperienceSpec, codec: str) -> dict[str, bytes]:
    """Steps that satisfy the contract to tar members, name -> bytes."""
    members = {"meta.json": json.dumps(vars(meta)).encode()}
    for key in spec.pictures:
        members[f"{key}.{codec}"] = encode_webp(rows[key]) if codec == "webp" else encode_npz({"frames": rows[key]})
    members["steps.npz"] = encode_npz({key: rows[key] for key in sorted(rows) if key not in spec.pictures})
    return members


def decode_meta(members: Mapping[str, bytes], where: str) -> ChunkMeta:
    """Where a chunk lies, without decoding its arrays.

    Raises:
        ExperienceError: the member ``meta.json`` is missing or broken.
    """
    try:
        plain = json.loads(_member(members, "meta.json", where))
        return ChunkMeta(int(plain["episode"]), int(plain["start"]), int(plain["length"]))
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ExperienceError):
            raise
        raise ExperienceError(f"{where}: member meta.json is broken") from error


def decode_chunk(members: Mapping[str, bytes], spec: ExperienceSpec, codec: str, where: str) -> Rows:
    """Tar members to steps that satisfy the contract. Members of other names are not looked at.

    Raises:
        ExperienceError: naming ``where`` and the member that is missing, broken, or breaks the contract.
    """
    meta, name = decode_meta(members, where), "steps.npz"
    try:
        rows = decode_npz(_member(members, name, where))
        for key in spec.pictures:
            name = f"{key}.{codec}"
            data, shape = _member(members, name, where), (meta.length, *spec.observations[key])
            rows[key] = decode_webp(data, shape) if codec == "webp" else decode_npz(data)["frames"]
    except ExperienceError:
        raise
    except Exception as error:  # given broken bytes, the decoders raise whatever they stumble over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExperienceError(f"{where}: member {name} cannot be decoded ({reason})") from error
    steps = check_rows(rows, spec, where)
    if steps != meta.length:
        raise ExperienceError(f"{where}: holds {steps} steps, its meta.json says {meta.length}")
    if spec.factors and "state" not in rows:
        raise ExperienceError(f"{where}: 'state' is missing, the index names {len(spec.factors)} factors")
    return rows


def _member(members: Mapping[str, bytes], name: str, where: str) -> bytes:
    if name not in members:
        raise ExperienceError(f"{where}: member {name} is missing")
    return members[name]
