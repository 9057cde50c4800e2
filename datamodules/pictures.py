"""Any picture as a small one of RGB: upright, without transparency, cropped, padded or stretched, without aliasing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises at broken files
FITS = ("crop", "pad", "stretch")
# weighs all that a new pixel covers and a little around it; plain areas (BOX) would be off by up to an old pixel, and flicker
FILTER = Image.Resampling.HAMMING


def on_black(pixels: np.ndarray) -> np.ndarray:
    """(H,W,4) RGBA laid over black, (H,W,3): what hides under full transparency is not seen."""
    colour, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def fitted(pixels: np.ndarray, size: int | tuple[int, int], fit: str, aspect: float = 1.0) -> np.ndarray:
    """A picture at another size.

    Args:
        pixels: (H,W,3) uint8.
        size: (rows, columns), or the side of a square.
        fit: ``crop`` to the largest part in the middle that has the proportions of ``size``, ``pad`` with black, or ``stretch``.
        aspect: width of a pixel divided by its height; not 1 in many old videos.

    Returns:
        (rows,columns,3) uint8.
    """
    picture, (height, width) = Image.fromarray(pixels), pixels.shape[:2]
    rows, columns = (size, size) if isinstance(size, int) else size
    if fit == "stretch":
        return np.asarray(picture.resize((columns, rows), FILTER))
    shown = width * aspect  # the width, in heights of a pixel
    if fit == "crop":
        slope = rows / columns
        part = min(height, shown * slope)  # its height
        x, y = (
            max(0.0, (width - part / slope / aspect) / 2),
            (height - part) / 2,
        )  # rounding may leave it a hair below 0
        return np.asarray(picture.resize((columns, rows), FILTER, (x, y, width - x, height - y)))
    scale = min(rows / height, columns / shown)
    inner = max(1, round(shown * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (columns, rows))
    canvas.paste(picture.resize(inner, FILTER), ((columns - inner[0]) // 2, (rows - inner[1]) // 2))
    return np.asarray(canvas)


def upright(pixels: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """A picture as it is to be shown, by quarter turns and mirroring.

    Args:
        pixels: (H,W,3).
        matrix: the display matrix of a video, (a, b, u, c, d, v, x, y, w): the pixel at (x, y) is shown at
            (a x + c y, b x + d y), x to the right and y down. What lies between quarter turns is taken for the nearest.
    """
    a, b, _, c, d = matrix[:5]
    rows, columns = d, a
    if abs(b) > abs(a):
        pixels, rows, columns = pixels.swapaxes(0, 1), b, c
    return pixels[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]


def read_picture(path: Path) -> np.ndarray:
    """An image file as (H,W,3) uint8, turned as its EXIF says; of an animation, the first picture.

    Raises:
        BROKEN: Pillow cannot read it.
    """
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip
            return np.repeat((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
        if picture.has_transparency_data:
            return on_black(np.asarray(picture.convert("RGBA")))
        return np.asarray(picture.convert("RGB"))
