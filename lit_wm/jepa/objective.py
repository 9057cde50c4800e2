"""The losses as pure functions, and the numbers that show collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_wm.distributed import global_mean


def in_windows(x: Tensor, length: int) -> Tensor:
    """Cut clips into windows of ``length`` transitions that share their end frames: (B,T,...) -> (B*n, length+1, ...).

    n = (T-1) // length; what is left over at the end of the clip is not used (choose clip_length = n * history + 1).
    """
    n = (x.shape[1] - 1) // length
    return torch.stack([x[:, i * length : (i + 1) * length + 1] for i in range(n)], 1).flatten(0, 1)


def masked_power_loss(prediction: Tensor, target: Tensor, valid: Tensor, exponent: float) -> Tensor:
    """mean |prediction - target|^p / p over the frames marked valid (V-JEPA 2-AC, ``loss_fn``).

    Args:
        prediction: (B,T,N,D).
        target: (B,T,N,D).
        valid: (B,T) bool; transitions into another episode are not.
        exponent: p; 1 is L1, 2 is half the squared error.
    """
    error_bt = (prediction - target).abs().pow(exponent).mean((-2, -1)) / exponent
    return (error_bt * valid).sum() / valid.sum().clamp_min(1)


def variance_hinge(z_mnd: Tensor) -> Tensor:
    """VICReg's variance term, mean relu(1 - std), std over the global batch, for every place and channel.

    Args:
        z_mnd: (M,N,D) tokens of M frames. Taken per place, because tokens that only say where they are look varied.
    """
    mean = global_mean(z_mnd.mean(0))
    std = (global_mean((z_mnd - mean).pow(2).mean(0)) + 1e-4).sqrt()
    return F.relu(1 - std).mean()


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
