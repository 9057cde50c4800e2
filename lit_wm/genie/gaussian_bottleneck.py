"""Continuous latent actions for comparison with codes: the bottleneck of a beta-VAE (Higgins et al. 2017), as in AdaWorld."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_wm.genie.vector_quantizer import Quantized


class GaussianBottleneck(nn.Module):
    """N(mean, variance) in place of a codebook; what holds information back is its divergence from N(0, 1).

    Its input has 2D numbers, means and log-variances. There are no codes: :meth:`encode` gives the mean itself, and :meth:`embed` takes a vector for what it stands for.

    Args:
        kl: weight of the divergence, in nats a vector. 0 holds nothing back.
    """

    def __init__(self, kl: float) -> None:
        super().__init__()
        self.kl = kl

    def encode(self, z: Tensor) -> Tensor:
        """(..., 2D) -> (..., D) means."""
        return z.float().chunk(2, -1)[0]

    def embed(self, vectors: Tensor) -> Tensor:
        """(..., D) as they are."""
        return vectors

    def forward(self, z: Tensor) -> Quantized:
        """A draw in training mode, the mean otherwise, and the weighted divergence."""
        mean, log_variance = z.float().chunk(2, -1)
        vectors = mean
        if self.training:
            vectors = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return Quantized(vectors, mean, self.kl * divergence(mean, log_variance).mean())


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(..., D) twice -> (...) nats: KL(N(mean, variance) || N(0, 1)), summed over the D numbers."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
