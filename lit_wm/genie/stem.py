"""How pictures become the tokens of a transformer: the linear patches of Genie's ViTs, or for comparison a few convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.errors import UserError
from lit_wm.nn.patches import patchify

STEMS = ("linear", "convolution")


class LinearStem(nn.Module):
    """Each patch by itself, through one matrix (ViT, Dosovitskiy et al. 2021).

    Args:
        channels: C.
        patch: P, pixels along its side.
        dim: D.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Linear(patch * patch * channels, dim)

    def forward(self, x_btchw: Tensor) -> Tensor:
        """(B,T,C,H,W) -> (B,T,H/P*W/P,D)."""
        return self.project(patchify(x_btchw, self.patch))


class ConvolutionStem(nn.Module):
    """Convolutions of stride 2 that double the channels, each frame by itself ("Early Convolutions Help Transformers See
    Better", Xiao et al. 2021; not in Genie).

    What a movement looks like is learnt once, not for every place within a patch, and tokens see a little beyond their patch.
    The first kernel is 5 x 5, the others 3 x 3.

    Args:
        channels: C.
        patch: P, a power of 2.
        dim: D, divisible by P / 2.

    Raises:
        UserError: a patch or a width that cannot be halved often enough.
    """

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        layers = patch.bit_length() - 1
        if patch < 2 or patch != 2**layers or dim % (patch // 2):
            raise UserError(
                f"stem 'convolution' halves the picture once a layer and doubles the width: patch {patch} must be a power of 2"
                f" and dim {dim} divisible by its half"
            )
        widths = [channels, *(dim >> i for i in reversed(range(layers)))]
        kernels = [5, *[3] * (layers - 1)]
        self.layers = nn.ModuleList(
            nn.Conv2d(c_in, c_out, k, stride=2, padding=k // 2)
            for c_in, c_out, k in zip(widths[:-1], widths[1:], kernels, strict=True)
        )

    def forward(self, x_btchw: Tensor) -> Tensor:
        """(B,T,C,H,W) -> (B,T,H/P*W/P,D)."""
        y = x_btchw.flatten(0, 1)
        for i, layer in enumerate(self.layers):
            y = layer(F.gelu(y) if i else y)
        return y.flatten(2).transpose(1, 2).unflatten(0, x_btchw.shape[:2])


def make_stem(kind: str, channels: int, patch: int, dim: int) -> LinearStem | ConvolutionStem:
    """The stem of that name."""
    return (LinearStem if kind == "linear" else ConvolutionStem)(channels, patch, dim)
