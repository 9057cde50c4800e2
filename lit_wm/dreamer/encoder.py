"""Observations to tokens: a small convolutional stack for pictures, an MLP for vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch
from lit_wm.dreamer.distributions import symlog
from lit_wm.dreamer.layers import MLP, ChannelNormSiLU, conv
from lit_wm.dreamer.sizes import Size
from lit_wm.errors import UserError

DEPTHS = (2, 3, 4, 4)  # channels of the four stages, in units of the base depth


def picture_shape(spec: ExperienceSpec, stages: int) -> tuple[int, int, int] | None:
    """(H,W,C) of all picture keys laid on top of each other; None without pictures.

    Raises:
        UserError: pictures of different sizes, or of a size that the halvings do not bring into 3..16.
    """
    shapes = [spec.observations[key] for key in spec.pictures]
    if not shapes:
        return None
    height, width = shapes[0][:2]
    if any(shape[:2] != (height, width) for shape in shapes):
        raise UserError(
            f"Dreamer stacks pictures on channels, so {', '.join(spec.pictures)} must have one size: {shapes}"
        )
    if any(side % 2**stages or not 3 <= side // 2**stages <= 16 for side in (height, width)):
        raise UserError(
            f"Dreamer halves pictures {stages} times (size_overrides: stages) down to 3..16: {height}x{width} does not fit"
        )
    return height, width, sum(shape[2] for shape in shapes)


class Encoder(nn.Module):
    """Pictures (stacked on channels, keys in sorted order) and vectors (symlog, sorted) to one token vector.

    ``squash=False`` feeds vectors as they are, for the ablation of symlog.
    """

    def __init__(self, spec: ExperienceSpec, size: Size, squash: bool = True) -> None:
        super().__init__()
        self.spec, self.squash = spec, squash
        self.width = 0
        if spec.vectors:
            self.mlp = MLP(sum(spec.observations[key][0] for key in spec.vectors), size.units, 3)
            self.width += size.units
        if shape := picture_shape(spec, size.stages):
            height, width, channels = shape
            depths = [size.depth * factor for factor in DEPTHS[: size.stages]]
            self.convs = nn.ModuleList(conv(a, b) for a, b in zip([channels, *depths], depths, strict=False))
            self.norms = nn.ModuleList(ChannelNormSiLU(depth) for depth in depths)
            self.width += depths[-1] * (height >> size.stages) * (width >> size.stages)

    def forward(self, batch: Batch) -> Tensor:
        """(B,T,...) observations -> (B,T,E) tokens: the vector part, then the picture part flattened as (h,w,c)."""
        tokens = []
        if self.spec.vectors:
            vectors = torch.cat([batch[key] for key in self.spec.vectors], -1)
            tokens.append(self.mlp(symlog(vectors) if self.squash else vectors))
        if self.spec.pictures:
            frames = torch.cat([batch[key] for key in self.spec.pictures], 2)
            x = frames.flatten(0, 1).to(self.convs[0].weight.dtype) / 255 - 0.5
            x = x.contiguous(memory_format=torch.channels_last)
            for layer, norm in zip(self.convs, self.norms, strict=True):
                x = norm(F.max_pool2d(layer(x), 2))
            tokens.append(x.permute(0, 2, 3, 1).flatten(1).unflatten(0, frames.shape[:2]))
        return torch.cat(tokens, -1)
