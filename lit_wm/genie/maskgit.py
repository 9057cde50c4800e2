"""MaskGIT (Chang et al. 2022): which tokens are hidden in training, and how a frame is filled in from nothing (Genie, 2.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def draw_mask(shape: tuple[int, int, int], device: torch.device, whole_frames: float = 0.0) -> Tensor:
    """(B,T,N) bool, True = masked: each clip with its own rate from U(0.5, 1) (Genie, 2.1), frame 0 never.

    Args:
        shape: (B,T,N), T >= 2.
        device: of the mask.
        whole_frames: probability that a frame is left whole; a clip that would lose nothing is masked in its last frame.
    """
    rate_b = torch.empty(shape[0], 1, 1, device=device).uniform_(0.5, 1)
    mask_btn = torch.rand(shape, device=device) < rate_b
    mask_btn[:, 0] = False
    if whole_frames > 0:
        whole_bt = torch.rand(shape[:2], device=device) < whole_frames
        whole_bt[:, -1] &= ~whole_bt[:, 1:].all(1)
        mask_btn &= ~whole_bt[..., None]
    return mask_btn


def kept_counts(tokens: int, steps: int) -> list[int]:
    """How many tokens are settled after each MaskGIT step: N (1 - cos(pi (s+1) / 2S)), rounded, all after the last.

    Steps that would settle no further token are left out: they would only draw again what they drew before.

    >>> kept_counts(16, 4)
    [1, 5, 10, 16]
    """
    counts = [round(tokens * (1 - math.cos(math.pi * (s + 1) / (2 * steps)))) for s in range(steps - 1)] + [tokens]
    return sorted(set(counts) - {0})


def draw_tokens(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw from softmax(logits / temperature).

    Args:
        logits: (..., V).
        temperature: divides the *logits* (dividing probabilities would change nothing after normalising); 0 takes the
            likeliest and reports its probability at temperature 1.
        generator: source of randomness.

    Returns:
        (...) int64 tokens and (...) their log-probability under the law they were drawn from.
    """
    log_law = (logits.float() / (temperature if temperature > 0 else 1)).log_softmax(-1)
    if temperature > 0:  # one random number a token: where it falls in the cumulated law
        device = logits.device if generator is None else generator.device
        u = torch.rand((*logits.shape[:-1], 1), generator=generator, device=device).to(logits.device)
        cumulated = log_law.exp().cumsum(-1)
        tokens = torch.searchsorted(cumulated, u * cumulated[..., -1:], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)[..., 0]
    else:
        tokens = log_law.argmax(-1)
    return tokens, log_law.gather(-1, tokens[..., None])[..., 0]


def maskgit_sample(
    logits_of: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, int],
    steps: int,
    temperature: float,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fill a frame from all masked to none (MaskGIT, Chang et al. 2022): draw all, keep the surest, mask the rest again.

    Args:
        logits_of: (B,N) tokens and (B,N) bool mask -> (B,N,V).
        shape: (B,N).
        steps: S.
        temperature: of the draws, see :func:`draw_tokens`.
        generator: source of randomness.
        device: of the result.

    Returns:
        (B,N) int64.
    """
    tokens_bn = torch.zeros(shape, dtype=torch.int64, device=device)
    mask_bn = torch.ones(shape, dtype=torch.bool, device=device)
    for keep in kept_counts(shape[1], steps):
        drawn_bn, confidence_bn = draw_tokens(logits_of(tokens_bn, mask_bn), temperature, generator)
        tokens_bn = torch.where(mask_bn, drawn_bn, tokens_bn)
        confidence_bn = confidence_bn.masked_fill(~mask_bn, torch.inf)  # what is settled stays
        mask_bn = torch.ones_like(mask_bn).scatter(1, confidence_bn.topk(keep, dim=1).indices, False)
    return tokens_bn
