"""Pictures to patches and back, and fixed sine-cosine positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_patch(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(rows, columns) of the patch grid.

    Raises:
        ValueError: if the picture is not divisible by the patch.
    """
    if size[0] % patch or size[1] % patch:
        raise ValueError(
            f"a {size[0]}x{size[1]} picture is not divisible by patches of {patch}; choose a patch that divides it"
        )
    return size[0] // patch, size[1] // patch


def patchify(x: Tensor, patch: int) -> Tensor:
    """(..., C,H,W) -> (..., N, patch*patch*C), patches row by row; inside a patch rows, columns, channels."""
    *lead, c, h, w = x.shape
    rows, columns = check_patch((h, w), patch)
    x = x.reshape(-1, c, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(*lead, rows * columns, patch * patch * c)


def unpatchify(x: Tensor, patch: int, channels: int, size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`patchify`: (..., N, patch*patch*C) -> (..., C,H,W)."""
    *lead, _, _ = x.shape
    rows, columns = check_patch(size, patch)
    x = x.reshape(-1, rows, columns, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(*lead, channels, *size)


def sincos(positions: Tensor, dim: int) -> Tensor:
    """Fixed sine-cosine code of scalar positions: (N,) -> (N, dim), all sines and then all cosines.

    Args:
        positions: float positions.
        dim: an even width.
    """
    if dim % 2:
        raise ValueError(f"a sine-cosine code needs an even width, not {dim}")
    rate = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = positions.double()[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1).float()


def sincos_2d(rows: int, columns: int, dim: int) -> Tensor:
    """(rows*columns, dim) positions of a grid, row by row: the column's code in the first half of the channels, as I-JEPA."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(x.flatten(), dim // 2), sincos(y.flatten(), dim // 2)], 1)


def sincos_3d(frames: int, rows: int, columns: int, dim: int) -> Tensor:
    """(frames*rows*columns, dim) positions, frame by frame, as V-JEPA's ``uniform_power``: 2 ceil(dim / 6) channels each for time,
    row and column in this order, cut to ``dim``, so that the column loses channels where they do not fit."""
    axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sincos(axis.flatten(), 2 * math.ceil(dim / 6)) for axis in axes], 1)[:, :dim]
