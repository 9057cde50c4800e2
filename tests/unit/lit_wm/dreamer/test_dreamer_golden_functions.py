"""DreamerV3's equations against numbers of the official implementation, on the inputs that the golden file lists."""

import json

import numpy as np
import pytest
import torch
from golden_reference import GOLDEN_FUNCTIONS, fill
from torch.optim.lr_scheduler import LambdaLR

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.dreamer import DreamerModule
from lit_wm.dreamer.behavior import ReturnNormalizer, lambda_returns
from lit_wm.dreamer.distributions import (
    categorical_kl,
    sample_one_hot,
    symexp,
    symlog,
    twohot_bins,
    twohot_cross_entropy,
    twohot_mean,
    unimix_log_probs,
)
from lit_wm.dreamer.layers import BlockLinear, RMSNorm
from lit_wm.optim.laprop import LaProp

TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-5}
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}  # the file has 12 digits


@pytest.fixture(params=TOLERANCE, ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN_FUNCTIONS.read_text())["float64"]


def check(found, expected, dtype, size=0.0, tolerance=0.0):
    """Within the tolerance of the precision, or of the argument where that is wider.

    ``size`` is that of the numbers which an entry comes from, where it is small because they cancel.
    """
    found, expected = found.detach().double(), torch.as_tensor(expected, dtype=torch.float64)
    rtol, rounding = max(TOLERANCE[dtype], tolerance), ROUNDING[dtype] * size
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rounding)


def noise(name, shape, scale, dtype):
    return torch.from_numpy(fill(name, shape, scale)).to(dtype)


def test_symlog_and_symexp(golden, dtype):
    for name, function in (("symlog", symlog), ("symexp", symexp)):
        check(function(torch.tensor(golden[name]["x"], dtype=dtype)), golden[name]["y"], dtype)


def test_bins(golden, dtype):
    bins, expected = twohot_bins(dtype), golden["bins"]
    assert len(bins) == expected["count"] and torch.equal(bins, -bins.flip(0))
    check(bins[expected["index"]], expected["value"], dtype)
    spacing = symlog(bins).diff()
    check(spacing, [expected["symlog_spacing"]] * 254, dtype, size=20)


def test_twohot_targets(golden, dtype):
    """The weights that the loss gives to the bins, read off its gradient: softmax - weights."""
    bins = twohot_bins(dtype)
    for case in golden["twohot_encode"]:
        logits = torch.zeros(255, dtype=dtype, requires_grad=True)
        twohot_cross_entropy(logits, torch.tensor(case["value"], dtype=dtype), bins).backward()
        weights = logits.detach().softmax(-1) - logits.grad
        expected = torch.zeros(255, dtype=torch.float64)
        expected[case["nonzero_index"]] = torch.tensor(case["weight"], dtype=torch.float64)
        check(weights, expected, dtype, size=0.1)
        decoded = (weights.double() * bins.double())[case["nonzero_index"]].sum()
        check(decoded, case["decoded"], dtype, size=1)


def test_twohot_mean_and_loss(golden, dtype):
    expected, bins = golden["twohot_decode_and_loss"], twohot_bins(dtype)
    slope = 0.25 * np.abs(np.arange(255) - np.array([[127], [131], [120], [140]]))
    logits = noise("F:twohot/logits", (4, 255), 1.0, dtype) - torch.from_numpy(slope).to(dtype)
    check(twohot_mean(logits, bins), expected["pred"], dtype)
    targets = torch.tensor(expected["targets"], dtype=dtype)
    check(twohot_cross_entropy(logits, targets, bins), expected["loss"], dtype)
    assert twohot_mean(torch.zeros(255, dtype=dtype), bins) == expected["uniform_logits_pred"]


def test_lambda_return_on_replay(golden, dtype):
    case = golden["lambda_return"]["replay_form"]
    reward, boot, last, terminal = (
        torch.tensor(case[key], dtype=dtype) for key in ("reward", "boot", "last", "terminal")
    )
    discount, trace = (1 - terminal[:, 1:]) * (1 - 1 / 333), (1 - last[:, 1:]) * case["lam"]
    check(lambda_returns(reward[:, 1:], discount, trace, boot[:, 1:], boot[:, -1]), case["ret"], dtype, size=1)


def test_lambda_return_in_imagination(golden, dtype):
    case = golden["lambda_return"]["imagination_form"]
    reward, value, cont = (torch.tensor(case[key], dtype=dtype) for key in ("reward", "value", "cont"))
    trace = torch.full_like(cont[:, 1:], case["lam"])
    check(lambda_returns(reward[:, 1:], cont[:, 1:], trace, value[:, 1:], value[:, -1]), case["ret"], dtype, size=1)


def test_kl_with_unimix_and_free_bits(golden, dtype):
    case = golden["unimix_kl"]
    post, prior = (torch.tensor(case[key], dtype=dtype, requires_grad=True) for key in ("post_logits", "prior_logits"))
    log_q, log_p = unimix_log_probs(post, case["unimix"]), unimix_log_probs(prior, case["unimix"])
    check(log_q.exp(), case["probs_post"], dtype)
    check(categorical_kl(log_q, log_p), case["kl_no_free_bits"], dtype)
    for name, log_probs in (("post", log_q), ("prior", log_p)):
        check(-(log_probs.exp() * log_probs).sum((-2, -1)), case[f"entropy_{name}"], dtype)
    for name, sides in (("dyn", (log_q.detach(), log_p)), ("rep", (log_q, log_p.detach()))):
        term = categorical_kl(*sides).clamp_min(case["free_nats"])
        check(term, case[name], dtype)
        for side, logits in (("post", post), ("prior", prior)):
            (gradient,) = torch.autograd.grad(term.sum(), logits, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(logits) if gradient is None else gradient
            assert torch.equal(gradient[0], torch.zeros_like(gradient[0])), "below the free bits: exactly 0"
            check(gradient, case[f"grad_{name}_wrt_{side}"], dtype, size=1)


def test_straight_through_sample(golden, dtype):
    case = golden["unimix_kl"]
    logits = torch.tensor(case["post_logits"], dtype=dtype, requires_grad=True)
    sample = sample_one_hot(unimix_log_probs(logits, case["unimix"]), None)
    check(sample, case["straight_through_onehot_of_mode"], dtype)
    (sample * torch.tensor([1, 2, 4], dtype=dtype)).sum().backward()
    check(logits.grad, case["straight_through_grad_of_dot_with_1_2_4_wrt_post"], dtype, size=1)


def clipped(p, settings):
    """The size of a gradient after clipping: an optimizer without memory keeps its square."""
    probe = torch.nn.Parameter(p.detach().clone())
    probe.grad = p.grad
    optimizer = LaProp([probe], **(settings | {"betas": (0, 0)}))
    optimizer.step()
    return optimizer.state[probe]["square"].sqrt()


@pytest.mark.parametrize(("rates", "ramp"), [("const_lr_0p1", 0), ("ramp_of_4_updates_to_lr_0p1", 4)])
def test_clipping_and_laprop(golden, dtype, rates, ramp):
    case = golden["agc_laprop"]
    params = {key: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for key, value in case["params"].items()}
    settings = {"lr": 0.1, "betas": (case["beta1"], case["beta2"]), "eps": case["eps"]}
    settings |= {"clip": case["agc"], "min_norm": case["pmin"]}
    optimizer = LaProp(params.values(), **settings)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, step / ramp) if ramp else 1.0)
    tolerance = 1e-6 if ramp else 0  # the reference computes its ramp in float32
    for gradients, expected in zip(case["grads"], case[rates], strict=True):
        before = {key: p.detach().clone() for key, p in params.items()}
        for key, p in params.items():
            p.grad = torch.tensor(gradients[key], dtype=dtype)
            check(clipped(p, settings), np.abs(expected["clipped"][key]), dtype, tolerance=tolerance)
        optimizer.step()
        schedule.step()
        for key, p in params.items():
            check(p - before[key], expected["update"][key], dtype, 0.1, tolerance)
            check(p, expected["params"][key], dtype, 0.1, tolerance)


def test_warm_up(golden):
    spec = ExperienceSpec({"vector": (2,)}, ActionSpace("discrete", (2,)))
    configured = DreamerModule(spec.to_dict()).configure_optimizers()
    found = []
    for _ in range(3):
        found.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert found == pytest.approx(golden["agc_laprop"]["warmup_1000_lr_4em5_schedule_values"], rel=1e-12)


def test_return_normaliser(golden, dtype):
    case, returns = golden["return_normaliser"], noise("F:ret", (7, 5), 30.0, dtype)
    normalizer, whole = ReturnNormalizer().to(dtype), ReturnNormalizer(rate=1.0).to(dtype)
    whole.update(returns)
    check(torch.stack([whole.low, whole.high]), [case["percentile5"], case["percentile95"]], dtype)
    for k, expected in enumerate(case["after"], 1):
        normalizer.update(k * returns)
        found = torch.stack([normalizer.low, normalizer.high, normalizer.scale])
        check(found, [expected["lo"], expected["hi"], expected["scale"]], dtype)


def test_block_linear_and_rms_norm(golden, dtype):
    x = noise("F:block/x", (2, 8), 1.0, dtype)
    layer, norm = BlockLinear(8, 6, 2).to(dtype), RMSNorm(8).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(noise("F:block/kernel", (2, 4, 3), 0.5, dtype))
        layer.bias.copy_(noise("F:block/bias", (6,), 0.1, dtype))
        norm.weight.copy_(1 + noise("F:norm/scale", (8,), 0.1, dtype))
    check(layer(x), golden["block_linear"]["y"], dtype, size=1)
    check(norm(x), golden["rms_norm"]["y"], dtype, size=1)
