"""How good predicted pictures are: PSNR and SSIM per frame, and the floor every prediction has to beat.

PSNR is the mean over frames of ``10 log10(1 / MSE)`` with the MSE floored at 1e-10 (100 dB): the PSNR of the mean MSE is
another, smaller number, dominated by the worst frames, and the two are often mixed up between papers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

MSE_FLOOR = 1e-10
SSIM_WINDOW = 11  # pixels; the Gaussian window of the SSIM paper (Wang et al. 2004) with sigma 1.5


def unit(frames: Tensor) -> Tensor:
    """uint8 frames -> float32 in [0, 1]; float frames are clamped to it."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames.float().clamp(0, 1)


def psnr(predicted: Tensor, truth: Tensor) -> Tensor:
    """(n,C,H,W) twice -> (n,) dB, peak 1."""
    mse = (unit(predicted) - unit(truth)).pow(2).mean((1, 2, 3))
    return -10 * torch.log10(mse.clamp(min=MSE_FLOOR))


def ssim(predicted: Tensor, truth: Tensor) -> Tensor:
    """(n,C,H,W) twice -> (n,), by torchmetrics with the window of the paper.

    Raises:
        ValueError: for pictures smaller than the window.
    """
    if min(truth.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of {SSIM_WINDOW}x{SSIM_WINDOW} or more, not {tuple(truth.shape[-2:])}")
    values = [
        structural_similarity_index_measure(unit(p), unit(t), data_range=1.0, reduction="none")
        for p, t in zip(predicted.split(64), truth.split(64), strict=True)
    ]
    return torch.cat([value.reshape(-1) for value in values])


def small_pixels(frames: Tensor, size: int = 8) -> Tensor:
    """(n,C,H,W) -> (n, C*size*size): the picture averaged down, a floor for probes that costs no learning at all."""
    return F.adaptive_avg_pool2d(unit(frames), size).flatten(1)
