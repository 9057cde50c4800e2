"""Where things are on a map of tokens, in a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_moments(z: Tensor, grid: tuple[int, int]) -> Tensor:
    """Read a token map out as its first moments along columns and rows.

    A channel that lights up where an object is gives the object's place by these moments, linearly. Flattening would
    spread the same knowledge over N D numbers, of which a projection to few dimensions keeps little, and the mean over
    places mostly says how objects lie within their patches.

    Args:
        z: (..., N, D), places row by row.
        grid: (rows, columns).

    Returns:
        (..., 2 D): mean x z, mean y z, with x and y of mean 0 and variance 1 over the grid.
    """
    y, x = torch.meshgrid(*(torch.arange(n, device=z.device, dtype=z.dtype) for n in grid), indexing="ij")
    weights_2n = torch.stack([(p - p.mean()).flatten() / p.std(unbiased=False).clamp_min(1e-6) for p in (x, y)])
    return (weights_2n / x.numel() @ z).flatten(-2)
