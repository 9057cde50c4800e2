"""DreamerV3's layers: initialisation, RMS norm in float32, block-diagonal linear maps, and the MLP."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def truncated_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Truncated at two sigma, so that the variance left after truncation is ``scale^2 / fan_in``."""
    std = 1.1368 * math.sqrt(1 / fan_in)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
    with torch.no_grad():
        weight.mul_(scale)


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A Linear with DreamerV3's initialisation; ``scale`` is the reference's ``outscale``."""
    layer = nn.Linear(inputs, outputs)
    truncated_normal_(layer.weight, inputs, scale)
    nn.init.zeros_(layer.bias)
    return layer


def conv(inputs: int, outputs: int, kernel: int = 5) -> nn.Conv2d:
    """A convolution of stride 1 that keeps the size, with DreamerV3's initialisation."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    truncated_normal_(layer.weight, kernel * kernel * inputs)
    nn.init.zeros_(layer.bias)
    return layer


# Rows: which of the 5 taps of a kernel fall on the left, own and right small pixel, for even and for odd large pixels.
PHASES = torch.tensor(
    [[[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]]
)


@cache
def phases_like(device: torch.device, dtype: torch.dtype) -> Tensor:
    """``PHASES`` on a device, copied there once: every copy from the host makes a GPU wait."""
    with torch.inference_mode(
        False
    ):  # whoever asks first may be judging: kept as made there, it could never be trained with
        return PHASES.to(device, dtype)


def upsample_conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Nearest x2 upsampling, then a 5x5 convolution, without ever making the large input: exact, and a third of the work.

    Copies of one pixel under a kernel add up its taps, so each of the four phases (even or odd row, even or odd column)
    of the result is a 3x3 convolution of the small picture.

    Args:
        x: (N,I,h,w).
        layer: a 5x5 convolution to O channels that keeps the size.

    Returns:
        (N,h,w,2,2,O): the phases side by side, which :func:`join_phases` makes one picture of.
    """
    phases = phases_like(layer.weight.device, layer.weight.dtype)
    kernel = torch.einsum("aip,ocpq,bjq->abocij", phases, layer.weight, phases).flatten(0, 2)
    x = F.conv2d(x, kernel, layer.bias.repeat(4), padding=1)
    return x.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))


def join_phases(x: Tensor) -> Tensor:
    """(N,h,w,2,2,O) -> (N,O,2h,2w), in memory with the channels last."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def split_phases(x: Tensor) -> Tensor:
    """(N,O,2h,2w) -> (N,h,w,2,2,O), the inverse."""
    x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).contiguous()


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learned scale, computed in float32 at least."""

    def __init__(self, width: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class NormSiLU(nn.Module):
    """Norm, then SiLU: what follows every hidden layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x))


class _NormSiLU(torch.autograd.Function):
    """silu(w x r), r = 1/rms(x), with its backward written out: a third fewer passes over memory than through its parts.

    Worth it for pictures only: on small tensors those passes cost less than a Python function's call.

    n = x r,   z = w n,   dz = silu'(z) dy
    dw = sum dz n,   dx = r (w dz - n mean(w dz n))     sum over rows, mean over the last axis
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, r, weight)
        return F.silu((x * r).mul_(weight), inplace=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, weight = ctx.saved_tensors
        n = x * r
        dz = torch.ops.aten.silu_backward(dy, n * weight)
        dz_n = (dz * n).flatten(0, -2)
        mean = torch.mv(dz_n, weight).to(r.dtype).view_as(r) / x.shape[-1]
        return dz.mul_(weight).addcmul_(n, mean, value=-1).mul_(r), dz_n.sum(0), None


class ChannelNormSiLU(NormSiLU):
    """The same over the channel axis of (N,C,H,W)."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, torch.float32))
        y = _NormSiLU.apply(wide, self.norm.weight.to(wide.dtype), self.norm.eps)
        return y.permute(0, 3, 1, 2).to(x.dtype)


class BlockLinear(nn.Module):
    """A block-diagonal Linear: ``groups`` blocks of (inputs/groups) x (outputs/groups).

    The initialiser's fan-in is all ``inputs``, not one block's (as the reference does).
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups, inputs // groups, outputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))
        truncated_normal_(self.weight, inputs)

    def blocks(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (groups, N, outputs/groups)."""
        x_gni = x.view(x.shape[0], self.groups, -1).transpose(0, 1)
        return torch.baddbmm(self.bias.view(self.groups, 1, -1), x_gni, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs), block after block."""
        return self.blocks(x).transpose(0, 1).reshape(x.shape[0], -1)


class MLP(nn.Sequential):
    """``layers`` times Linear, Norm, SiLU."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [linear(inputs if i == 0 else units, units), NormSiLU(units)]
        super().__init__(*parts)

    def after_first(self, hidden: Tensor) -> Tensor:
        """The rest, from what the first Linear gave."""
        for i in range(1, len(self)):
            hidden = self[i](hidden)
        return hidden
