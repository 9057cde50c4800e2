"""VICReg's terms and SIGReg against the numbers of the published code, and what they must do whatever the code."""

import math

import pytest
import torch
from jepa_golden import DTYPES, close, fill, values
from torch import nn

from lit_wm.errors import UserError
from lit_wm.jepa.regularizers import covariance, random_directions, sigreg, smoothness, variance_hinge

both = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
FLOAT32_TABLES = 1e3  # the reference keeps quadrature and directions in float32: 1e-5 of the value instead of 1e-8


def representations(dtype):
    """The file's inputs, (T,B,D) each."""
    z = fill("A.reg.Z", (4, 32, 16)).to(dtype)
    return {
        "normal": z,
        "scaled_tenth": 0.1 * z,
        "scaled_three": 3 * z,
        "shifted_half": z + 0.5,
        "collapsed_to_mean": z.mean((0, 1)).expand_as(z).clone(),
        "mixed": z @ fill("A.reg.mix", (16, 16), 1 / 4).to(dtype),
        "time_dependent_shift": z + 0.25 * torch.arange(4, dtype=dtype)[:, None, None],
    }


def directions(dtype, name="A.reg.directions", slices=64):
    a = fill(name, (16, slices))
    return (a / a.norm(dim=0)).to(dtype)


def with_gradient(function, z):
    z = z.detach().requires_grad_()
    value = function(z)
    value.backward()
    return value.item(), z.grad.norm().item()


def off(found, wanted, dtype, loose=1.0):
    return [] if close(found, wanted, dtype, loose) else [(found, wanted)]


def sigreg_misses(dtype, function=sigreg):
    """What of SIGReg's golden numbers ``function`` does not meet."""
    golden, misses = values("reg", dtype), []
    for name, z in representations(dtype).items():
        for part, wanted in ((z, golden["sigreg_TBD"][name]), (z[0], golden["lejepa_ND"][name])):
            value, norm = with_gradient(lambda x: function(x, directions(dtype)), part)
            misses += off(value, wanted["value"], dtype, FLOAT32_TABLES if dtype == torch.float64 else 5)
            misses += off(norm, wanted["grad_norm"], dtype, FLOAT32_TABLES if dtype == torch.float64 else 5)
    return misses


@both
def test_sigreg_meets_the_golden_numbers(dtype):
    assert sigreg_misses(dtype) == []
    z, a = representations(dtype)["normal"], directions(dtype, "A.reg.directions1024", 1024)
    wanted = values("reg", dtype)["sigreg_1024_normal"]
    value, norm = with_gradient(lambda x: sigreg(x, a), z)
    loose = FLOAT32_TABLES if dtype == torch.float64 else 5
    assert off(value, wanted["value"], dtype, loose) + off(norm, wanted["grad_norm"], dtype, loose) == []


MISTAKES = {
    "without the factor N": lambda z, a: sigreg(z, a) / z.shape[-2],
    "moments in one heap": lambda z, a: sigreg(z.flatten(0, -2), a),
    "directions of any length": lambda z, a: sigreg(z, 1.1 * a),
    "too few knots": lambda z, a: sigreg(z, a, knots=16),
    "another end": lambda z, a: sigreg(z, a, last=3.2),
    "centred first": lambda z, a: sigreg(z - z.mean(-2, keepdim=True), a),
    "the mean of sines forgotten": lambda z, a: sigreg(torch.cat([z, -z], -2), a) / 2,
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistaken_sigreg_misses_them(mistake):
    assert sigreg_misses(torch.float64, mistake) != []


def test_sigreg_is_the_integral_it_approximates():
    """On N(0, I) samples a quadrature of 200 intervals gives the same to 1e-4 of it."""
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = random_directions(8, 32, 0, z)
    assert sigreg(z, a).item() == pytest.approx(sigreg(z, a, knots=201).item(), rel=1e-4)
    assert sigreg(z, a) < 2 < 100 < sigreg(0.5 * z, a)


def test_directions_are_those_of_the_update():
    like = torch.zeros((), dtype=torch.float64)
    a, again, other = (random_directions(5, 7, seed, like) for seed in (3, 3, 4))
    assert torch.equal(a, again) and not torch.equal(a, other) and a.dtype == torch.float64
    torch.testing.assert_close(a.norm(dim=0), torch.ones(7, dtype=torch.float64), rtol=1e-6, atol=0)


def pldm_misses(dtype, std=variance_hinge, cov=covariance, smooth=smoothness):
    """PLDM's terms, original (batch terms of frame 0, time terms without it) and stable-worldmodel's (of every frame)."""
    misses, golden = [], values("reg", dtype)
    terms = {
        "std_loss": lambda z: std(z[0]),
        "cov_loss": lambda z: cov(z[0]),
        "std_loss_t": lambda z: std(z[1:].transpose(0, 1), over_ranks=False),
        "cov_loss_t": lambda z: cov(z[1:].transpose(0, 1), over_ranks=False),
        "sim_loss_t": lambda z: smooth(z.transpose(0, 1)),
    }
    every_frame = {
        "std_loss": std,
        "cov_loss": cov,
        "temp_align_loss": lambda z: smooth(z.transpose(0, 1)),
    }
    z = representations(dtype)
    for name, original in golden["pldm_original"]["values"].items():
        for of, found in ((original, terms), (golden["swm_pldm"][name], every_frame)):
            for term, function in found.items():
                value, norm = with_gradient(function, z[name])
                misses += off(value, of[term]["value"], dtype, 10) + off(norm, of[term]["grad_norm"], dtype, 10)
    return misses


@both
def test_vicreg_terms_meet_the_golden_numbers_of_pldm(dtype):
    assert pldm_misses(dtype) == []


VICREG_MISTAKES = {
    "a biased variance": {
        "std": lambda z, over_ranks=True: variance_hinge(z * ((z.shape[-2] - 1) / z.shape[-2]) ** 0.5)
    },
    "no hinge": {"std": lambda z, over_ranks=True: (1 - (z.var(-2) + 1e-4).sqrt()).mean()},
    "no epsilon": {"std": lambda z, over_ranks=True: torch.relu(1 - z.std(-2)).mean()},
    "all moments in one heap": {"std": lambda z, over_ranks=True: variance_hinge(z.flatten(0, -2))},
    "divided by D": {"cov": lambda z, over_ranks=True: covariance(z) * (z.shape[-1] - 1)},
    "variances counted too": {"cov": lambda z, over_ranks=True: covariance(z) + z.var(-2).square().mean()},
    "not centred": {"cov": lambda z, over_ranks=True: covariance(torch.cat([z, -z], -2))},
    "a sum over channels": {"smooth": lambda z: smoothness(z) * z.shape[-1]},
}


@pytest.mark.parametrize("mistake", VICREG_MISTAKES.values(), ids=VICREG_MISTAKES.keys())
def test_a_mistaken_vicreg_misses_them(mistake):
    assert pldm_misses(torch.float64, **mistake) != []


@both
def test_two_views_meet_eb_jepa(dtype):
    """Its VICReg adds the terms of both views."""
    inputs, noise = representations(dtype), fill("A.reg.view2_noise", (32, 16)).to(dtype)
    for name, wanted in values("reg", dtype)["eb_vicreg"].items():
        a = inputs[name][0]
        b = a + 0.3 * noise
        assert close((variance_hinge(a) + variance_hinge(b)).item(), wanted["var_loss"]["value"], dtype, 10)
        assert close((covariance(a) + covariance(b)).item(), wanted["cov_loss"]["value"], dtype, 10)
        assert close((a - b).square().mean().item(), wanted["invariance_loss"]["value"], dtype, 10)


@both
def test_over_time_and_batch_at_once_as_eb_jepa(dtype):
    z = representations(dtype)["mixed"]
    wanted = values("reg", dtype)["eb_vc_idm_sim"]["mixed_first_t_only_False"]
    assert close(variance_hinge(z.flatten(0, 1)).item(), wanted["std_loss"], dtype, 10)
    assert close(covariance(z.flatten(0, 1)).item(), wanted["cov_loss"], dtype, 10)


@both
def test_the_gradient_reaches_an_encoder_as_in_the_reference(dtype):
    x = fill("A.reg.X", (4, 32, 10)).to(dtype)
    encoder = nn.Linear(10, 16, bias=False, dtype=dtype)
    golden = values("reg", dtype)["linear_encoder"]
    for name, function in {
        "sigreg": lambda z: sigreg(z, directions(dtype)),
        "swm_std_plus_cov": lambda z: variance_hinge(z) + covariance(z),
    }.items():
        with torch.no_grad():
            encoder.weight.copy_(fill("A.reg.W", (10, 16), 1 / math.sqrt(10)).T)
        encoder.zero_grad()
        value = function(encoder(x))
        value.backward()
        loose = FLOAT32_TABLES if dtype == torch.float64 else 5
        assert close(value.item(), golden[name]["value"], dtype, loose)
        assert close(encoder.weight.grad.norm().item(), golden[name]["grad_norm_W"], dtype, loose)


def test_collapse_costs_the_most_and_spread_nothing():
    torch.manual_seed(0)
    assert variance_hinge(2 * torch.randn(500, 4)) < 1e-3
    assert variance_hinge(torch.zeros(500, 4)).item() == pytest.approx(0.99, abs=1e-6)  # sqrt(1e-4) = .01
    place_only = torch.randn(3, 1, 4).expand(3, 500, 4)  # tokens that tell places apart, but no pictures
    assert variance_hinge(place_only).item() == pytest.approx(0.99, abs=1e-6)
    one = torch.randn(500, 1)
    assert covariance(torch.randn(500, 4)) < 0.02 < 0.5 < covariance(torch.cat([one, one], 1))


@pytest.mark.parametrize("term", [variance_hinge, covariance])
def test_one_sample_is_refused(term):
    with pytest.raises(UserError, match="batch_size"):
        term(torch.zeros(1, 3))


def test_one_channel_has_no_covariance():
    with pytest.raises(UserError, match="at least 2"):
        covariance(torch.zeros(5, 1))
