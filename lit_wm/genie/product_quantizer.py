"""A code as the product of several small codebooks: K = k^m codes from m k vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_wm.genie.vector_quantizer import Quantized, VectorQuantizer, global_share, perplexity_of


class ProductQuantizer(nn.Module):
    """m codebooks of k vectors, each for its own D/m of the D numbers, in place of one of k^m.

    Code c stands for the codes c % k, c // k % k, ... of the parts.

    Args:
        parts: m.
        codes: k, of each part.
        dim: D, divisible by m.
        options: passed to each :class:`~lit_wm.genie.vector_quantizer.VectorQuantizer`.
    """

    def __init__(self, parts: int, codes: int, dim: int, **options: Any) -> None:
        super().__init__()
        self.each, self.codes, self.decay = codes, codes**parts, options["decay"]
        self.parts = nn.ModuleList(VectorQuantizer(codes, dim // parts, **options) for _ in range(parts))
        self.register_buffer("usage", torch.full((self.codes,), 1 / self.codes))

    @property
    def codebook(self) -> Tensor:
        """(K,D) the vectors of all codes."""
        return self.embed(torch.arange(self.codes, device=self.usage.device))

    def _joined(self, codes: list[Tensor]) -> Tensor:
        return sum(c * self.each**i for i, c in enumerate(codes))

    def _split(self, z: Tensor) -> tuple[Tensor, ...]:
        return z.chunk(len(self.parts), -1)

    def encode(self, z: Tensor) -> Tensor:
        """(..., D) -> (...) int64."""
        return self._joined([part.encode(x) for part, x in zip(self.parts, self._split(z), strict=True)])

    def embed(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D) the codes' vectors."""
        return torch.cat([part.embed(codes // self.each**i % self.each) for i, part in enumerate(self.parts)], -1)

    def perplexity(self) -> Tensor:
        """exp(entropy) of the running usage of the K codes."""
        return perplexity_of(self.usage)

    def forward(self, z: Tensor) -> Quantized:
        """Quantise each part; in training mode also learn the codebooks. The loss is the mean over parts."""
        found = [part(x) for part, x in zip(self.parts, self._split(z), strict=True)]
        codes = self._joined([one.codes for one in found])
        if self.training:
            self.usage.lerp_(global_share(codes, self.codes), 1 - self.decay)
        return Quantized(
            torch.cat([one.vectors for one in found], -1), codes, torch.stack([one.loss for one in found]).mean()
        )

    def let_through(self, z: Tensor) -> Quantized:
        """The vectors as they are; no code is learnt."""
        for part, x in zip(self.parts, self._split(z), strict=True):
            part.let_through(x)
        return Quantized(z, self.encode(z.detach()), z.new_zeros(()))
