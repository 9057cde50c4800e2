"""States back to observations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch
from lit_wm.distributed import gather_rows
from lit_wm.dreamer.distributions import symlog
from lit_wm.dreamer.encoder import DEPTHS, picture_shape
from lit_wm.dreamer.layers import (
    MLP,
    BlockLinear,
    ChannelNormSiLU,
    NormSiLU,
    conv,
    join_phases,
    linear,
    split_phases,
    upsample_conv,
)
from lit_wm.dreamer.sizes import BLOCKS, Size

DIFFERENT = 13  # of 255: a value differs from the background when it does so by more


def foreground(x: Tensor, over_ranks: bool = False) -> Tensor:
    """Where pictures (N,...) uint8 differ from the background, their median (with ``over_ranks`` that of all ranks): float 0 or 1.

    A sprite that covers a hundredth of the places it may be in is best drawn, in squared error, as nothing: knowing half
    of the places gains a hundredth of its error. Counted twenty times, it is drawn where it may be, and half of the places
    are worth knowing.
    """
    background = (gather_rows(x) if over_ranks else x).median(0).values
    return ((x.short() - background.short()).abs() > DIFFERENT).float()


class Decoder(nn.Module):
    """Reconstructs every observation key from (deter, stoch); vectors in symlog space unless ``squash=False``.

    ``foreground_weight`` is how much more a value of a pixel counts where it is not background; see :func:`foreground`.
    """

    def __init__(self, spec: ExperienceSpec, size: Size, squash: bool = True, foreground_weight: float = 0.0) -> None:
        super().__init__()
        self.spec, self.squash, self.foreground_weight = spec, squash, foreground_weight
        z = size.stoch * size.classes
        if spec.vectors:
            self.mlp = MLP(z + size.deter, size.units, 3)
            self.vectors = nn.ModuleDict({key: linear(size.units, spec.observations[key][0]) for key in spec.vectors})
        if shape := picture_shape(spec, size.stages):
            height, width, channels = shape
            depths = [size.depth * factor for factor in DEPTHS[: size.stages]]
            self.grid = (height >> size.stages, width >> size.stages, depths[-1])
            flat = self.grid[0] * self.grid[1] * self.grid[2]
            self.from_deter = BlockLinear(size.deter, flat, BLOCKS)
            self.from_stoch = nn.Sequential(
                linear(z, 2 * size.units), NormSiLU(2 * size.units), linear(2 * size.units, flat)
            )
            self.grid_norm = NormSiLU(depths[-1])
            ins, outs = depths[:0:-1], depths[-2::-1]
            self.convs = nn.ModuleList(conv(a, b) for a, b in zip(ins, outs, strict=True))
            self.norms = nn.ModuleList(ChannelNormSiLU(depth) for depth in outs)
            self.out = conv(depths[0], channels)

    def pictures(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """(..., D), (..., S,C) -> (..., channels, H,W) in (0, 1): all picture keys, stacked."""
        return join_phases(self.picture_phases(deter, stoch)).unflatten(0, deter.shape[:-1])

    def picture_phases(self, deter: Tensor, stoch: Tensor) -> Tensor:
        """The same as (N,H/2,W/2,2,2,channels), before its phases are joined."""
        h, w, c = self.grid
        a = self.from_deter(deter.reshape(-1, deter.shape[-1]))
        a = a.view(-1, BLOCKS, h, w, c // BLOCKS).permute(0, 2, 3, 1, 4).reshape(-1, h, w, c)  # (g h w c) -> h w (g c)
        b = self.from_stoch(stoch.reshape(len(a), -1)).view(-1, h, w, c)
        x = self.grid_norm(a + b).permute(0, 3, 1, 2)
        for layer, norm in zip(self.convs, self.norms, strict=True):
            x = norm(join_phases(upsample_conv(x, layer)))
        return torch.sigmoid(upsample_conv(x, self.out))

    def losses(self, deter: Tensor, stoch: Tensor, batch: Batch) -> dict[str, Tensor]:
        """(B,T) reconstruction loss per observation key: squared error summed over pixels, or over symlog dimensions."""
        losses = {}
        if self.spec.pictures:
            predicted = self.picture_phases(deter, stoch)
            widths = [self.spec.observations[key][2] for key in self.spec.pictures]
            for key, x in zip(self.spec.pictures, predicted.split(widths, -1), strict=True):
                target = split_phases(batch[key].flatten(0, 1))  # in bytes a quarter of joining what is predicted
                x = x.to(torch.promote_types(x.dtype, torch.float32))
                error = (x - target.to(x.dtype) / 255).square()
                if self.foreground_weight:
                    # as many pictures on each rank are sure in training only
                    error = error * (1 + self.foreground_weight * foreground(target, over_ranks=self.training))
                error = error.flatten(1).sum(1)
                losses[key] = error.unflatten(0, deter.shape[:-1])
        if self.spec.vectors:
            hidden = self.mlp(torch.cat([stoch.flatten(-2), deter], -1))  # stoch first, unlike the heads
            for key, layer in self.vectors.items():
                target = symlog(batch[key]) if self.squash else batch[key]
                x = layer(hidden)
                losses[key] = (x.to(torch.promote_types(x.dtype, torch.float32)) - target).square().sum(-1)
        return losses
