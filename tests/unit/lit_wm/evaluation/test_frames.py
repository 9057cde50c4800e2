"""PSNR, SSIM and the common decoder."""

from itertools import pairwise

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from lit_wm.evaluation.frames import psnr, small_pixels, ssim
from lit_wm.evaluation.probe_decoder import FittedDecoder


def pictures(n=6, size=32, seed=0):
    smooth = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, size, mode="bilinear")


def test_psnr_is_the_mean_over_frames_and_not_of_the_mean_error():
    truth = pictures(2)
    noisy = truth + torch.tensor([0.01, 0.2]).view(2, 1, 1, 1) * torch.randn(truth.shape).clamp(-2, 2)
    noisy = noisy.clamp(0, 1)
    each = peak_signal_noise_ratio(noisy, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(psnr(noisy, truth), each, atol=1e-4)
    assert psnr(noisy, truth).mean() > peak_signal_noise_ratio(noisy, truth, data_range=1.0) + 3


def test_psnr_of_equal_frames_is_the_floor_and_bytes_equal_floats():
    truth = (255 * pictures()).byte()
    assert torch.allclose(psnr(truth, truth), torch.full((6,), 100.0))
    assert torch.allclose(psnr(truth.float() / 255, truth), torch.full((6,), 100.0))


def test_more_blur_scores_lower():
    truth = (pictures(size=32) > 0.5).float()
    blurred = [torch.nn.functional.avg_pool2d(truth, 2 * r + 1, 1, r) for r in (0, 1, 2, 4)]
    for measure in (psnr, ssim):
        values = [measure(frames, truth).mean() for frames in blurred]
        assert all(a > b for a, b in pairwise(values))


def test_ssim_is_one_for_equal_frames_per_frame_and_refuses_tiny_ones():
    truth = pictures(130)
    assert ssim(truth, truth).shape == (130,) and torch.allclose(ssim(truth, truth), torch.ones(130))
    assert torch.allclose(ssim(1 - truth, truth)[:3], ssim(1 - truth[:3], truth[:3]), atol=1e-5)
    with pytest.raises(ValueError):
        ssim(truth[..., :8, :8], truth[..., :8, :8])


def test_small_pixels_average_areas():
    frames = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    frames[0, 0, 0, 0] = 255
    assert small_pixels(frames).shape == (1, 64)
    assert small_pixels(frames)[0, 0] == 0.25 and small_pixels(frames)[0, 1:].sum() == 0


def test_common_decoder_learns_odd_sizes_is_repeatable_and_leaves_the_random_state_alone():
    code = torch.rand(256, 3, generator=torch.Generator().manual_seed(0))
    frames = (255 * code[:, :, None, None].expand(-1, -1, 18, 27)).byte()
    before = torch.get_rng_state()
    decoder = FittedDecoder(code, frames, steps=60, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    mean = frames.float().mean(0, keepdim=True).expand(256, -1, -1, -1) / 255
    assert decoder(code).shape == (256, 3, 18, 27)
    assert psnr(decoder(code), frames).mean() > psnr(mean, frames).mean() + 3
    assert torch.equal(FittedDecoder(code, frames, steps=60, seed=0)(code[:4]), decoder(code[:4]))
