"""Finite scalar quantisation (Mentzer et al. 2023): each number is rounded to one of a few levels, no codebook is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_wm.errors import UserError
from lit_wm.genie.vector_quantizer import Quantized, global_share, perplexity_of

MARGIN = 1e-3  # keeps the bounded number away from where rounding would reach one level too many


class FiniteScalarQuantizer(nn.Module):
    """K = L_1 L_2 ... codes on a fixed grid, in place of a :class:`~lit_wm.genie.vector_quantizer.VectorQuantizer`.

    z_i is bounded by tanh to L_i levels and rounded; its gradient goes straight through. There is nothing that could
    die, start badly or need a loss of its own.

    Args:
        levels: L_i >= 2, for each of the D numbers.
        decay: of the running usage, from which the perplexity is told.

    Raises:
        UserError: no levels, or one below 2.
    """

    def __init__(self, levels: tuple[int, ...], decay: float = 0.99) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise UserError(f"levels {list(levels)}: fsq needs 2 or more of each number, for example [8, 5, 5, 5]")
        self.decay, self.codes = decay, math.prod(levels)
        self.register_buffer("levels_d", torch.tensor(levels), persistent=False)
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("strides_d", torch.tensor(strides), persistent=False)
        codes_k = torch.arange(self.codes)
        digits_kd = codes_k[:, None] // self.strides_d % self.levels_d
        self.register_buffer("codebook", digits_kd / self._middle_d - 1, persistent=False)
        self.register_buffer("usage", torch.full((self.codes,), 1 / self.codes))

    @property
    def _middle_d(self) -> Tensor:
        """(D,) the level that stands for 0."""
        return self.levels_d // 2

    def bound(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D) between the outermost levels, about 0 at 0; rounding it gives whole numbers -L//2 ... (L-1)//2."""
        half = (self.levels_d - 1) * (1 - MARGIN) / 2
        offset = 0.5 * (self.levels_d % 2 == 0)
        return torch.tanh(z + torch.tan(offset / half)) * half - offset

    def encode(self, z: Tensor) -> Tensor:
        """(..., D) -> (...) int64 codes."""
        digits = self.bound(z.float()).round().long() + self._middle_d
        return (digits * self.strides_d).sum(-1)

    def embed(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D) the codes' vectors, in [-1, 1]."""
        return self.codebook[codes]

    def perplexity(self) -> Tensor:
        """exp(entropy) of the running usage."""
        return perplexity_of(self.usage)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise; in training mode also count the usage."""
        codes = self.encode(z)
        scaled = self.bound(z.float()) / self._middle_d
        vectors = scaled + (self.embed(codes) - scaled).detach()
        if self.training:
            self.usage.lerp_(global_share(codes, self.codes), 1 - self.decay)
        return Quantized(vectors, codes, z.new_zeros(()))

    def let_through(self, z: Tensor) -> Quantized:
        """Bounded, but not rounded."""
        return Quantized(self.bound(z.float()) / self._middle_d, self.encode(z.detach()), z.new_zeros(()))
