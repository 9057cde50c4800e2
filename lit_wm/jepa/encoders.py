"""From a frame to its representation: tokens of a ViT, or one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_wm.jepa.vit import VisionTransformer
from lit_wm.nn.batch_norm import GlobalBatchNorm


class Projector(nn.Module):
    """Linear, batch norm, GELU, Linear: LeWM's map from and to the space in which it predicts (arXiv:2603.19312, ``MLP``).

    Args:
        dim: width of what enters.
        hidden: width inside (LeWM 2048).
        out: width of what leaves.
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), GlobalBatchNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., out)."""
        return self.net(x)


class PooledTransformer(nn.Module):
    """A ViT whose tokens become one vector: their mean, or that of a class token (LeWM); then a projector, if one is wanted.

    Args:
        vit: with a class token, it comes first and is the vector.
        dim: width of the ViT's tokens.
        hidden: of the projector; 0: none.
        out: width of the vector behind a projector.
    """

    grid = None

    def __init__(self, vit: VisionTransformer, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.vit = vit
        self.projector = Projector(dim, hidden, out) if hidden else nn.Identity()

    def forward(self, x_mchw: Tensor) -> Tensor:
        """(M,C,H,W) -> (M,1,D)."""
        x_mnd = self.vit(x_mchw)
        x_md = x_mnd[:, 0] if self.vit.class_token is not None else x_mnd.mean(1)
        return self.projector(x_md).unsqueeze(1)


class ConvolutionEncoder(nn.Module):
    """Strided convolutions, each halving the picture, and two linear layers to one vector: for experiments of seconds.

    Args:
        size: (H,W) of the pictures, both divisible by 2 to the number of convolutions.
        channels: colours.
        widths: channels of each convolution; all divisible by 4, the groups that are normalised together.
        hidden: width of the layer before the last.
        dim: D.

    Raises:
        ValueError: sizes that do not fit.
    """

    grid = None

    def __init__(self, size: tuple[int, int], channels: int, widths: Sequence[int], hidden: int, dim: int) -> None:
        super().__init__()
        scale = 2 ** len(widths)
        if size[0] % scale or size[1] % scale:
            raise ValueError(f"a {size[0]}x{size[1]} picture cannot be halved {len(widths)} times")
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.GroupNorm(4, width), nn.GELU()]
        places = (size[0] // scale) * (size[1] // scale)
        self.net = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(widths[-1] * places, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )

    def forward(self, x_mchw: Tensor) -> Tensor:
        """(M,C,H,W) -> (M,1,D)."""
        return self.net(x_mchw).unsqueeze(1)


class PictureDecoder(nn.Module):
    """From a representation back to a picture, for the arms that predict pixels: (..., N,D) -> (..., C,H,W), around 0.

    A vector goes through the mirror image of :class:`ConvolutionEncoder`; tokens each draw their patch by one linear layer.

    Args:
        picture: (C,H,W).
        dim: D.
        grid: (rows, columns) of tokens; None: one vector.
        widths: channels of the transposed convolutions, the first one's input first; a vector's.
    """

    def __init__(
        self, picture: tuple[int, int, int], dim: int, grid: tuple[int, int] | None, widths: Sequence[int]
    ) -> None:
        super().__init__()
        channels, height, width = picture
        self.picture, self.grid = picture, grid
        if grid is not None:
            self.patch = height // grid[0]
            self.net: nn.Module = nn.Linear(dim, channels * self.patch * (width // grid[1]))
            return
        scale = 2 ** len(widths)
        layers: list[nn.Module] = [
            nn.Linear(dim, widths[0] * (height // scale) * (width // scale)),
            nn.Unflatten(1, (widths[0], height // scale, width // scale)),
        ]
        for i, (before, after) in enumerate(zip(widths, (*widths[1:], channels), strict=True)):
            layers += [nn.GELU()] if i else []
            layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1))
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        *lead, _, d = z.shape
        if self.grid is None:
            return self.net(z.reshape(-1, d)).view(*lead, *self.picture)
        from_patches = self.net(z).view(-1, *self.grid, self.picture[0], self.patch, self.patch)
        return from_patches.permute(0, 3, 1, 4, 2, 5).reshape(*lead, *self.picture)


def standardised(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 pictures with about unit variance, as I-JEPA's ImageNet scaling brings about."""
    return frames.to(dtype) / 63.75 - 2
