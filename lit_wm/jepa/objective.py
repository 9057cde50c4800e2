"""The losses as pure functions, and the numbers that show collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def in_windows(x: Tensor, length: int) -> Tensor:
    """Cut clips into windows of ``length`` transitions that share their end frames: (B,T,...) -> (B*n, length+1, ...).

    n = (T-1) // length; what is left over at the end of the clip is not used (choose clip_length = n * history + 1).
    """
    n = (x.shape[1] - 1) // length
    return torch.stack([x[:, i * length : (i + 1) * length + 1] for i in range(n)], 1).flatten(0, 1)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """|e|, element by element (V-JEPA, V-JEPA 2)."""
    return (prediction - target).abs()


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """e^2 / 2: V-JEPA's |e|^p / p with p = 2."""
    return (prediction - target).square() / 2


def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """e^2 / 2 where |e| < 1, else |e| - 1/2 (I-JEPA's code; its paper says squared error)."""
    return F.smooth_l1_loss(prediction, target, reduction="none")


DISTANCES = {"l1": l1, "l2": l2, "smooth_l1": smooth_l1}


def mean_where(error: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B,T,...) errors over the (B,T) frames marked valid; transitions into another episode are not."""
    error_bt = error.flatten(2).mean(-1)
    return (error_bt * valid).sum() / valid.sum().clamp_min(1)


@torch.no_grad()
def collapse_numbers(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Three cheap numbers that a loss does not show. All look at one place and channel over the frames of the batch.

    Args:
        prediction: (B,T,N,D) of frames 1..T.
        target: (B,T,N,D).

    Returns:
        ``_target_std``: 0 when every picture gives the same tokens. ``_prediction_std``. ``_nmse``: squared error over
        the target's variance, 1 for predicting the mean and more for a collapsed target.
    """
    h = target.flatten(0, 1)
    variance = h.var(0, unbiased=False).mean()
    error = (prediction - target).pow(2).mean()
    return {
        "_target_std": h.std(0, unbiased=False).mean(),
        "_prediction_std": prediction.flatten(0, 1).std(0, unbiased=False).mean(),
        "_nmse": error / variance.clamp_min(1e-12),
    }
