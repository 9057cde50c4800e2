"""The weighted squared error that tokenizer and latent action model share."""

import pytest
import torch

from lit_wm.genie.pixel_loss import pixel_loss


def test_pixels_that_differ_from_the_reference_weigh_more():
    reference, target = torch.zeros(4), torch.tensor([0.0, 0.0, 1.0, 1.0])
    prediction = torch.tensor([0.5, 0.0, 0.5, 1.0])
    assert pixel_loss(prediction, target, reference, 0) == pytest.approx((0.25 + 0.25) / 4)
    assert pixel_loss(prediction, target, reference, 10) == pytest.approx((0.25 + 11 * 0.25) / 4)
