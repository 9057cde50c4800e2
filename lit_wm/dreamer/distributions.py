"""Symlog, the symexp-twohot regression, and categorical latents with unimix: pure functions (DreamerV3, Methods)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNIMIX = 0.01
TWOHOT_BINS = 255


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|)"""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return x.sign() * x.abs().expm1()


def twohot_bins(dtype: torch.dtype = torch.float32) -> Tensor:
    """255 bins, symexp(linspace(-20, 0, 128)) and its mirror image: exactly 0 in the middle."""
    half = symexp(torch.linspace(-20, 0, TWOHOT_BINS // 2 + 1, dtype=dtype))
    return torch.cat([half, -half[:-1].flip(0)])


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value of the bins. Opposite bins differ in sign alone: the difference of their probabilities, times the
    positive one, sums to exactly 0 for uniform logits.
    """
    middle = (len(bins) - 1) // 2
    p = logits.softmax(-1)
    # a product of matrices, which this could be, would be rounded to 8 bits under bf16-mixed
    return ((p[..., middle + 1 :] - p[..., :middle].flip(-1)) * bins[middle + 1 :].to(p.dtype)).sum(-1)


def twohot_cross_entropy(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy against the target spread over its two neighbouring bins, interpolated in raw (not symlog) space.

    Args:
        logits: (..., 255).
        target: (...,), or (..., K) for several targets that share one log-softmax; no gradient is taken through it.
        bins: (255,) from :func:`twohot_bins`.

    Returns:
        nats, of the target's shape. One gather; no one-hot of 255 entries is ever made.
    """
    targets = target.detach().to(bins.dtype).view(*logits.shape[:-1], -1)
    count = torch.searchsorted(bins, targets.contiguous(), right=True)  # bins <= target
    below, above = (count - 1).clamp(0, len(bins) - 1), count.clamp(0, len(bins) - 1)
    distance_below, distance_above = (bins[below] - targets).abs(), (bins[above] - targets).abs()
    total = distance_below + distance_above
    weight_above = torch.where(below == above, torch.zeros_like(total), distance_below / total.clamp_min(1e-30))
    at_below, at_above = logits.log_softmax(-1).gather(-1, torch.cat([below, above], -1)).chunk(2, -1)
    return -torch.lerp(at_below, at_above, weight_above).view(target.shape)


def class_softmax(logits: Tensor) -> Tensor:
    """softmax of (..., S, C) over its classes.

    A few classes are moved before the latents: along a last axis shorter than a vector register, torch's CPU kernel goes
    through them one by one, and takes 6 times as long.
    """
    if logits.shape[-1] >= 16:
        return logits.softmax(-1)
    return logits.transpose(-1, -2).contiguous().softmax(-2).transpose(-1, -2).contiguous()


def unimix_log_probs(logits: Tensor, unimix: float = UNIMIX) -> Tensor:
    """log(0.99 softmax(logits) + 0.01 / C) of (..., S, C): no class is ever impossible."""
    if unimix == 0:
        return logits.log_softmax(-1)
    return ((1 - unimix) * class_softmax(logits) + unimix / logits.shape[-1]).log()


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL[p || q] of (..., S, C) log-probabilities, summed over classes and latents: (...,)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


def sample_one_hot(log_probs: Tensor, noise: Tensor | None) -> Tensor:
    """A one-hot sample whose gradient is that of the probabilities (straight-through): onehot + p - sg(p).

    Args:
        log_probs: (..., C), normalised.
        noise: (..., 1) uniform in [0, 1): the sample is the first class at which the cumulative probability exceeds it, one
            random number for C classes. None takes the mode.
    """
    probs = log_probs.exp()
    below = probs.detach().cumsum(-1)[..., :-1]  # without the last class, which takes what rounding leaves
    index = log_probs.argmax(-1) if noise is None else (below <= noise).sum(-1)
    hard = F.embedding(index, torch.eye(log_probs.shape[-1], dtype=log_probs.dtype, device=log_probs.device))
    return hard + probs - probs.detach() if log_probs.requires_grad else hard


def gumbel(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise, -log(-log(u)); -inf for u = 0, which no argmax takes. Four times as fast as exponential_."""
    u = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    return u.log_().neg_().log_().neg_()
