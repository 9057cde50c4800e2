"""DreamerV3's equations against brute force."""

import math

import pytest
import torch

from lit_wm.dreamer.behavior import ReturnNormalizer, in_pieces, lambda_returns
from lit_wm.dreamer.distributions import (
    categorical_kl,
    class_softmax,
    gumbel,
    sample_one_hot,
    symexp,
    symlog,
    twohot_bins,
    twohot_cross_entropy,
    twohot_mean,
    unimix_log_probs,
)
from lit_wm.dreamer.layers import (
    BlockLinear,
    ChannelNormSiLU,
    RMSNorm,
    conv,
    join_phases,
    split_phases,
    upsample_conv,
)


def test_symlog_and_symexp_are_inverse_and_odd():
    x = torch.tensor([-1e4, -1.0, 0.0, 0.5, 3e6], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x)
    torch.testing.assert_close(symlog(-x), -symlog(x))
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1.0, abs=1e-6)


def test_bins_are_symmetric_with_an_exact_zero():
    bins = twohot_bins()
    assert len(bins) == 255 and bins[127] == 0
    assert torch.equal(bins, -bins.flip(0)) and (bins.diff() > 0).all()


def test_uniform_logits_predict_exactly_zero():
    assert twohot_mean(torch.zeros(3, 255), twohot_bins()).tolist() == [0.0, 0.0, 0.0]


def test_twohot_loss_is_least_at_the_interpolated_distribution():
    """The target's mean under its own twohot weights is the target, so the minimising logits predict it."""
    bins = twohot_bins(torch.float64)
    target = torch.tensor([-7.3, 0.0, 0.4, 55.5], dtype=torch.float64)
    logits = torch.zeros(4, 255, dtype=torch.float64, requires_grad=True)
    twohot_cross_entropy(logits, target, bins).sum().backward()
    weights = logits.detach().softmax(-1) - logits.grad  # d CE / d logits = softmax - target weights
    torch.testing.assert_close((weights * bins).sum(-1), target, rtol=1e-9, atol=1e-9)
    assert ((weights.abs() > 1e-9).sum(-1) <= 2).all()


def test_twohot_targets_beyond_the_ends_are_clipped():
    bins = twohot_bins(torch.float64)
    logits = torch.randn(2, 255, dtype=torch.float64)
    loss = twohot_cross_entropy(logits, torch.tensor([-1e12, 1e12], dtype=torch.float64), bins)
    torch.testing.assert_close(loss, -logits.log_softmax(-1)[[0, 1], [0, 254]])


def test_unimix_keeps_every_class_possible():
    log_p = unimix_log_probs(torch.tensor([[100.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(log_p.exp(), torch.tensor([[0.9925, 0.0025, 0.0025, 0.0025]]))


@pytest.mark.parametrize("classes", [4, 16])
def test_the_softmax_over_classes_is_the_plain_one_with_its_gradient(classes):
    logits = torch.randn(3, 2, 5, classes, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(logits)
    torch.testing.assert_close(class_softmax(logits), logits.softmax(-1))
    (found,) = torch.autograd.grad((class_softmax(logits) * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_kl_is_that_of_torch_summed_over_latents():
    p, q = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    law = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(law(logits=p), law(logits=q)).sum(-1)
    torch.testing.assert_close(categorical_kl(p.log_softmax(-1), q.log_softmax(-1)), expected)


def test_samples_are_one_hot_with_the_gradient_of_the_probabilities():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((sample_one_hot(logits.log_softmax(-1), None) * weight).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weight).sum(), logits)
    torch.testing.assert_close(gradient, expected)
    hard = sample_one_hot(logits.detach().log_softmax(-1), None)
    assert torch.equal(hard.argmax(-1), logits.argmax(-1)) and (hard.sum(-1) == 1).all()


def test_samples_follow_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.001, 0.0, 0.999]]).log()
    drawn = sample_one_hot(log_p.expand(50_000, 3, 3), torch.rand((50_000, 3, 1), generator=generator))
    assert torch.equal(drawn.sum(-1), torch.ones(50_000, 3))
    torch.testing.assert_close(drawn.mean(0), log_p.exp(), atol=0.01, rtol=0)


def test_every_class_is_drawn_where_its_share_of_the_unit_interval_begins():
    log_p = torch.tensor([0.25, 0.5, 0.25]).log()
    noise = torch.tensor([[0.0], [0.2499], [0.2501], [0.7499], [0.7501], [1 - 2**-24]])
    assert sample_one_hot(log_p.expand(6, 3), noise).argmax(-1).tolist() == [0, 0, 1, 1, 2, 2]


def test_gumbel_noise_has_its_mean_and_deviation_and_no_nan():
    noise = gumbel((1000, 1000), torch.empty(0), torch.Generator().manual_seed(0)).double()
    noise = noise[noise.isfinite()]  # u = 0 gives -inf
    assert len(noise) > 999_000
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.005)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_a_head_in_pieces_is_the_head(rows):
    x = torch.randn(3, 5, 2, dtype=torch.float64)
    torch.testing.assert_close(in_pieces(torch.sin, x, rows), x.sin())
    torch.testing.assert_close(in_pieces(lambda y: y.sum(-1), x, rows), x.sum(-1))


def test_several_targets_share_one_softmax():
    logits = torch.randn(3, 2, 255, dtype=torch.float64, requires_grad=True)
    targets, bins = 5 * torch.randn(3, 2, 4, dtype=torch.float64), twohot_bins(torch.float64)
    each = torch.stack([twohot_cross_entropy(logits, target, bins) for target in targets.unbind(-1)], -1)
    together = twohot_cross_entropy(logits, targets, bins)
    torch.testing.assert_close(together, each)
    weight = torch.randn_like(together)
    found = torch.autograd.grad((together * weight).sum(), logits)
    torch.testing.assert_close(found, torch.autograd.grad((each * weight).sum(), logits))


def test_lambda_return_is_the_weighted_sum_of_n_step_returns():
    """Against the definition: (1-l) sum l^(n-1) R^(n), with discounts that end an episode in between."""
    torch.manual_seed(0)
    n, k, lam = 3, 6, 0.95
    reward, value = torch.randn(n, k, dtype=torch.float64), torch.randn(n, k, dtype=torch.float64)
    discount = torch.rand(n, k, dtype=torch.float64)
    discount[0, 2] = 0
    returns = lambda_returns(reward, discount, torch.full_like(reward, lam), value, value[:, -1])
    for row in range(n):
        expected, weight, collected, through = 0.0, 1.0, 0.0, 1.0
        for t in range(k):
            collected += through * reward[row, t]
            through *= discount[row, t]
            share = weight * (1 - lam) if t < k - 1 else weight
            expected += share * (collected + through * value[row, t])
            weight *= lam
        assert returns[row, 0].item() == pytest.approx(float(expected), rel=1e-12)


def test_return_normalizer_moves_one_percent_from_zero_and_never_below_one():
    normalizer = ReturnNormalizer()
    returns = torch.linspace(-100, 300, 401)
    normalizer.update(returns)
    assert normalizer.low.item() == pytest.approx(0.01 * -80, rel=1e-4)
    assert normalizer.high.item() == pytest.approx(0.01 * 280, rel=1e-4)
    assert ReturnNormalizer().scale == 1 and normalizer.scale.item() == pytest.approx(3.6, rel=1e-4)


def test_block_linear_is_a_dense_map_with_zeros_off_the_blocks():
    layer = BlockLinear(12, 8, 4)
    dense = torch.block_diag(*layer.weight)
    x = torch.randn(5, 12)
    torch.testing.assert_close(layer(x), x @ dense + layer.bias)


def test_rms_norm_ignores_scale_and_keeps_dtype():
    norm = RMSNorm(16)
    x = torch.randn(3, 16) * 10
    torch.testing.assert_close(norm(x), norm(7 * x), rtol=1e-4, atol=1e-4)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_channel_norm_and_silu_in_one_equal_their_parts_with_gradients():
    torch.manual_seed(0)
    layer = ChannelNormSiLU(6).double()
    torch.nn.init.normal_(layer.norm.weight)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    plain = torch.nn.functional.silu(layer.norm(x.movedim(1, -1)).movedim(-1, 1))
    torch.testing.assert_close(layer(x), plain)
    weight = torch.randn_like(plain)
    found = torch.autograd.grad((layer(x) * weight).sum(), [x, layer.norm.weight])
    torch.testing.assert_close(found, torch.autograd.grad((plain * weight).sum(), [x, layer.norm.weight]))


def test_upsampled_convolution_equals_its_plain_form_with_gradients():
    torch.manual_seed(0)
    layer = conv(3, 4).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    plain = layer(torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(join_phases(upsample_conv(x, layer)), plain)
    torch.testing.assert_close(split_phases(plain), upsample_conv(x, layer))
    weight = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weight).sum(), [x, layer.weight, layer.bias])
    found = torch.autograd.grad((join_phases(upsample_conv(x, layer)) * weight).sum(), [x, layer.weight, layer.bias])
    torch.testing.assert_close(found, expected)
