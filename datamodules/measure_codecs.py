"""Measure how to store pictures, on pictures that were recorded: ``python -m datamodules.measure_codecs ROOT``.

Prints for npz (deflate) and for lossless WebP strips of several efforts the bytes of a frame, and how many frames a
second of CPU time encodes and decodes (median of the repeats). :func:`datamodules.codec.encode_webp` rests on this table.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from PIL import Image

from datamodules.codec import decode_npz, decode_webp, encode_npz
from datamodules.shards import iter_episodes, read_index

EFFORTS = ((0, 50), (0, 80), (1, 80), (4, 80))  # (method, quality) as Pillow takes them


def webp(frames: np.ndarray, method: int, quality: int) -> bytes:
    """(T,H,W,3) to a lossless strip; method and quality set the effort, never the pictures."""
    file = io.BytesIO()
    strip = frames.reshape(-1, *frames.shape[2:])
    Image.fromarray(strip).save(file, "WEBP", lossless=True, quality=quality, method=method)
    return file.getvalue()


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    function()
    return time.process_time() - began


def measure(root: str, frames: int, repeats: int) -> None:
    """Print the table, as Markdown."""
    index = read_index(root)
    key, size = index.spec.pictures[0], index.chunk_steps
    chunks = [rows[key][i : i + size] for rows in iter_episodes(root) for i in range(0, len(rows[key]), size)]
    chunks = chunks[: max(1, frames // size)]
    total = sum(map(len, chunks))
    codecs = {"npz": (lambda x: encode_npz({"frames": x}), lambda data, x: decode_npz(data)["frames"])}
    for method, quality in EFFORTS:
        encode = partial(webp, method=method, quality=quality)
        codecs[f"webp, method {method}, quality {quality}"] = (encode, lambda data, x: decode_webp(data, x.shape))
    print(f"{root}: {total} frames of {'x'.join(map(str, index.spec.observations[key]))} in chunks of {size}\n")
    print("| codec | bytes/frame | encode frames/s | decode frames/s |\n|---|---|---|---|")
    for name, (encode, decode) in codecs.items():
        stored = [encode(x) for x in chunks]
        for data, x in zip(stored, chunks, strict=True):
            np.testing.assert_array_equal(decode(data, x), x)
        write = median(cpu_seconds(lambda e=encode: [e(x) for x in chunks]) for _ in range(repeats))
        read = median(
            cpu_seconds(lambda d=decode, s=stored: [d(data, x) for data, x in zip(s, chunks, strict=True)])
            for _ in range(repeats)
        )
        print(f"| {name} | {sum(map(len, stored)) / total:.0f} | {total / write:,.0f} | {total / read:,.0f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", help="folder of a recording with RGB pictures")
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=5)
    measure(**vars(parser.parse_args()))
