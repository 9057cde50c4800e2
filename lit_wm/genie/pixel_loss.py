"""Squared error that does not drown a few telling pixels in thousands that never change."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

DIFFERENT = 0.05  # a pixel differs from the reference picture when it does so by more than this, of [0, 1]


def pixel_loss(prediction: Tensor, target: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Mean of w (prediction - target)^2, with w = 1 + ``weight`` where the target differs from ``reference``.

    With weight 0 it is the mean squared error. The latent action model takes the frame before as its reference (what
    has changed), the tokenizer the mean picture (what is not background).

    Args:
        prediction: (...,C,H,W).
        target: likewise.
        reference: a picture that broadcasts to the target.
        weight: how much more a pixel counts that differs.
    """
    if weight == 0:
        return F.mse_loss(prediction, target)
    w = 1 + weight * ((target - reference).abs() > DIFFERENT)
    return (w * (prediction - target).square()).mean()
