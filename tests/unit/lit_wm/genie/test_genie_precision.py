"""Under bf16-mixed the layers are rounded; the weights are not, and the curve is the same."""

import pytest
import torch
from lightning import Callback
from test_genie_module import CODER, clips, fit, model

STARTED = {"kmeans_start": True, "restart_below": 0.05}
SETTINGS = {
    "order": "separate",
    "tokenizer_steps": 12,
    "lam_steps": 12,
    "tokenizer": {**CODER, "codes": 32, "latent_dim": 8, "continuous_warmup": 4, **STARTED},
    "lam": {**CODER, "latent_dim": 8, "continuous_warmup": 4, "warmup_noise": 0.1, **STARTED},
}


class Curve(Callback):
    """The loss of every update."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def curves():
    """Precision -> losses and the trained model, 12 updates of each part."""
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        curve, m = Curve(), model(**SETTINGS)
        torch.manual_seed(1)  # of the warm-up's noise and the masks
        fit(m, 36, clips(16), callbacks=[curve], precision=precision)
        found[precision] = torch.tensor(curve.losses), m
    return found


def test_the_curve_is_the_same_but_for_rounding(curves):
    whole, half = curves["32-true"][0], curves["bf16-mixed"][0]
    assert len(whole) == 36 and whole[11] < 0.9 * whole[0] and whole[-1] < 0.9 * whole[24]
    for turn in (slice(0, 12), slice(12, 24), slice(24, 36)):
        assert (half[turn] - whole[turn]).abs().max() < 0.1 * whole[turn].mean()
    assert not torch.equal(half, whole), "something was rounded"


def test_weights_and_codebooks_stay_float32(curves):
    m = curves["bf16-mixed"][1]
    assert {value.dtype for value in m.state_dict().values() if value.is_floating_point()} == {torch.float32}
