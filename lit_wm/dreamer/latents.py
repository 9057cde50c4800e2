"""The stochastic state z: 32 categoricals (DreamerV3), or as many Gaussians (PlaNet, DreamerV1), for the ablation.

Both describe a law by a tensor (..., S, P) and answer the same questions, so that the RSSM need not know which it holds.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_wm.dreamer.distributions import categorical_kl, sample_one_hot, unimix_log_probs


class Latents(Protocol):
    """What the RSSM asks of its latents.

    Attributes:
        shape: (S,C) of one sample.
        outputs: width of the layer that predicts a law.
        stored: shape and dtype of a sample in the replay.
    """

    shape: tuple[int, int]
    outputs: int
    stored: tuple[tuple[int, ...], np.dtype]

    def law(self, raw: Tensor) -> Tensor:
        """(..., outputs) of a linear layer -> the law (..., S,P), in float32 at least."""

    def noise(self, lead: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise for samples with leading axes ``lead``."""

    def sample(self, law: Tensor, noise: Tensor | None) -> Tensor:
        """(..., S,C) with a gradient to the law; without noise its mode."""

    def tempered(self, law: Tensor, temperature: float) -> Tensor:
        """The law, sharper below 1 and wider above."""

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """(...,) nats of KL[q || p], summed over the latents."""

    def entropy(self, law: Tensor) -> Tensor:
        """(...,) nats, summed over the latents."""

    def pack(self, z: Tensor) -> Tensor:
        """A sample as it is stored."""

    def unpack(self, stored: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`pack`, in the dtype of ``like``."""


class CategoricalLatents:
    """S one-hot vectors of C classes; a law is their log-probabilities, ``unimix`` of the uniform law mixed in."""

    def __init__(self, stoch: int, classes: int, unimix: float) -> None:
        self.shape, self.outputs, self.unimix = (stoch, classes), stoch * classes, unimix
        self.stored = ((stoch,), np.dtype(np.int16))

    def law(self, raw: Tensor) -> Tensor:
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        return unimix_log_probs(wide.unflatten(-1, self.shape), self.unimix)

    def noise(self, lead: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.rand((*lead, self.shape[0], 1), dtype=dtype, device=like.device, generator=generator)

    def sample(self, law: Tensor, noise: Tensor | None) -> Tensor:
        return sample_one_hot(law, noise)

    def tempered(self, law: Tensor, temperature: float) -> Tensor:
        return (law / temperature).log_softmax(-1)

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        return categorical_kl(q, p)

    def entropy(self, law: Tensor) -> Tensor:
        return -(law.exp() * law).sum((-2, -1))

    def pack(self, z: Tensor) -> Tensor:
        return z.argmax(-1).to(torch.int16)

    def unpack(self, stored: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(stored.long(), self.shape[1]).to(like)


class GaussianLatents:
    """S numbers; a law is their means and standard deviations (..., S,2), the latter 2 sigmoid(x / 2) + 0.1 (DreamerV2)."""

    def __init__(self, stoch: int) -> None:
        self.shape, self.outputs = (stoch, 1), 2 * stoch
        self.stored = ((stoch,), np.dtype(np.float32))

    def law(self, raw: Tensor) -> Tensor:
        wide = raw.to(torch.promote_types(raw.dtype, torch.float32))
        mean, deviation = wide.chunk(2, -1)
        return torch.stack([mean, 2 * torch.sigmoid(deviation / 2) + 0.1], -1)

    def noise(self, lead: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.empty((*lead, self.shape[0]), dtype=dtype, device=like.device).normal_(generator=generator)

    def sample(self, law: Tensor, noise: Tensor | None) -> Tensor:
        mean, deviation = law.unbind(-1)
        return (mean if noise is None else mean + deviation * noise).unsqueeze(-1)

    def tempered(self, law: Tensor, temperature: float) -> Tensor:
        mean, deviation = law.unbind(-1)
        return torch.stack([mean, deviation * temperature], -1)

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        (mean_q, std_q), (mean_p, std_p) = q.unbind(-1), p.unbind(-1)
        ratio = (std_q / std_p).square()
        return 0.5 * (ratio + ((mean_q - mean_p) / std_p).square() - 1 - ratio.log()).sum(-1)

    def entropy(self, law: Tensor) -> Tensor:
        return (law[..., 1].log() + 0.5 * np.log(2 * np.pi * np.e)).sum(-1)

    def pack(self, z: Tensor) -> Tensor:
        return z.squeeze(-1).float()

    def unpack(self, stored: Tensor, like: Tensor) -> Tensor:
        return stored.unsqueeze(-1).to(like)
