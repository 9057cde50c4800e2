"""Probes: what they must read, what they must not, and what they must say they cannot know."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, r2_score

from datamodules.experience import Factor
from lit_wm.evaluation.probes import (
    Split,
    balanced_accuracy_skill,
    fit_state_probe,
    r2,
    score_state_probe,
    skill,
)
from lit_wm.evaluation.projection import fit_projection
from lit_wm.evaluation.statistics import episode_draws

ONE = (Factor("y"),)


def scores(x, y, factors=ONE, episode=None, cut=(300, 400)):
    """Fit on the first rows, choose on the next, score on the rest."""
    parts = [slice(0, cut[0]), slice(cut[0], cut[1]), slice(cut[1], None)]
    train, val, test = (Split(x[p], y[p]) for p in parts)
    episode = torch.arange(len(test.y_nf)) if episode is None else episode
    draws = episode_draws(episode.numpy(), 50, 0)
    return score_state_probe(fit_state_probe(train, val, factors), test, factors, draws)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_r2_and_balanced_accuracy_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    y, predicted = rng.normal(3, 1, 80), rng.normal(3, 1, 80)
    keep = rng.random(80) < 0.7
    draws = episode_draws(np.arange(80) // 4, 20, 0)
    assert r2(y, predicted, draws, keep)[0] == pytest.approx(r2_score(y[keep], predicted[keep]))
    weights = draws.weights[7][draws.row][keep]
    assert r2(y, predicted, draws, keep)[7] == pytest.approx(r2_score(y[keep], predicted[keep], sample_weight=weights))
    label, guess = rng.integers(0, 3, 80).astype(float), rng.integers(0, 3, 80).astype(float)
    expected = (balanced_accuracy_score(label[keep], guess[keep]) - 1 / 3) / (2 / 3)
    assert balanced_accuracy_skill(label, guess, draws, keep)[0] == pytest.approx(expected)


def test_linear_factor_is_read_and_noise_is_not():
    x = randn(600, 10)
    y = torch.stack([x @ randn(10, seed=1), randn(600, seed=2)], 1)
    linear, noise = scores(x, y, (Factor("linear"), Factor("noise")))
    assert linear[0] > 0.999
    assert abs(noise[0]) < 0.1


def test_noisier_features_score_lower():
    x = randn(600, 5)
    y = x @ randn(5, 1, seed=1)
    ladder = [scores(x + noise * randn(600, 5, seed=3), y)[0][0] for noise in (0, 0.3, 1, 3, 30)]
    assert all(a > b for a, b in pairwise(ladder)) and ladder[-1] < 0.1


def test_split_by_episode_defeats_a_probe_that_recognises_the_clip():
    """Features carry the identity of the episode; the label is a coin per episode, which nothing can predict."""
    identity, label = randn(60, 60), randn(60, 1, seed=1)
    x = identity.repeat_interleave(10, 0) + 0.01 * randn(600, 60, seed=2)
    y = label.repeat_interleave(10, 0)
    by_episode = scores(x, y, cut=(400, 500))[0][0]
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    by_frame = scores(x[shuffled], y[shuffled], cut=(400, 500))[0][0]
    assert by_frame > 0.9
    assert by_episode < 0.1


def test_undefined_factor_is_masked_for_that_factor_alone():
    x = randn(600, 5)
    y = torch.stack([x[:, 0], x[:, 1], x[:, 2]], 1)
    y[torch.arange(600) % 2 == 0, 1] = torch.nan
    y[:, 2] = torch.nan
    full, half, never = scores(x, y, (Factor("full"), Factor("half"), Factor("never")))
    assert full[0] > 0.999 and half[0] > 0.999
    assert never == "defined in 0 training and 0 validation clips only"


def test_constant_factor_has_no_score():
    assert scores(randn(600, 5), torch.ones(600, 1))[0] == "does not vary in the test clips"


def test_rare_class_counts_as_much_as_a_common_one():
    x = randn(900, 4)
    rare = (x[:, 0] > 1.3).float()[:, None]  # one in ten
    found = scores(x, rare, (Factor("rare", "event", "discrete"),), cut=(500, 700))[0][0]
    assert found > 0.75
    always_no = balanced_accuracy_skill(
        rare[700:, 0].numpy(), np.zeros(200), episode_draws(np.arange(200), 5), np.ones(200, bool)
    )
    assert always_no[0] == 0


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")  # scikit-learn leaves them out, as is meant
def test_a_draw_that_misses_a_class_is_judged_on_the_classes_it_holds():
    """Five episodes of class 0, one of 1 and one of 2: many draws miss a class, some hold one class alone."""
    y = np.array([0.0] * 10 + [1.0] * 2 + [2.0] * 2)
    draws, keep = episode_draws(np.arange(14) // 2, 200, 0), np.ones(14, bool)
    held = np.array([len({y[i] for i in range(14) if w[draws.row[i]]}) for w in draws.weights])
    assert set(held) == {1, 2, 3}
    always_0 = balanced_accuracy_skill(y, np.zeros(14), draws, keep)
    has_0 = draws.weights[:, :5].sum(1) > 0
    assert np.isnan(always_0[held == 1]).all(), "one class alone says nothing"
    assert always_0[(held > 1) & has_0] == pytest.approx(0), "a constant prediction is chance in every draw"
    perfect = balanced_accuracy_skill(y, y, draws, keep)
    assert perfect[held > 1] == pytest.approx(1)
    weights, guess = draws.weights[np.flatnonzero(held == 2)[0]][draws.row], np.roll(y, 3)
    expected = balanced_accuracy_score(y, guess, sample_weight=weights, adjusted=True)
    assert balanced_accuracy_skill(y, guess, draws, keep)[held == 2][0] == pytest.approx(expected)


def test_one_clip_beyond_anything_seen_does_not_ruin_the_score():
    x = randn(600, 5)
    y = x[:, :1].clamp(-1, 1)
    far = x.clone()
    far[500, 0] = 1e6
    calm, ruined = scores(x, y)[0][0], scores(far, y)[0][0]
    assert calm > 0.8 and ruined > calm - 0.1


def test_skill_is_zero_at_the_floor_one_at_the_top_and_gives_nothing_for_a_bad_floor():
    value = skill(np.array([0.4, 0.7, 1.0, 0.0]), np.array([0.4, 0.4, 0.4, -0.5]))
    assert value == pytest.approx([0, 0.5, 1, 0])


def test_pca_keeps_what_varies_where_a_random_projection_drowns_it():
    """A small object in a wide token map: a few loud directions among 12000 quiet ones."""
    signal = randn(600, 4)
    x = torch.cat([10 * signal, randn(600, 12000, seed=1)], 1)
    y = signal[:, :1]
    pca, random = (
        score_state_probe(
            fit_state_probe(Split(x[:300], y[:300]), Split(x[300:400], y[300:400]), ONE, kind=kind),
            Split(x[400:], y[400:]),
            ONE,
            episode_draws(np.arange(200), 5),
        )[0][0]
        for kind in ("pca", "random")
    )
    assert pca > 0.8 > 0.6 > random


@pytest.mark.parametrize("shape", [(200, 20), (50, 300)])
def test_pca_is_white_and_equals_the_svd(shape):
    x = randn(*shape) * torch.linspace(1, 9, shape[1])
    z = fit_projection(x, 8)(x)
    assert torch.allclose(z.T @ z / len(x), torch.eye(8, dtype=torch.float64), atol=1e-6)
    _, _, directions = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    exact = (x - x.mean(0)).double() @ directions[:8].T
    assert torch.allclose((z * exact).sum(0).abs(), z.norm(dim=0) * exact.norm(dim=0), rtol=1e-6)


def test_projection_gives_the_same_width_to_all_and_nothing_to_rounding_noise():
    assert fit_projection(randn(100, 3), 64)(randn(5, 3)).shape == (5, 64)
    constant = torch.full((100, 10), 1e4) + 2e-3 * randn(100, 10)  # the last bit of a float32 flickers
    assert fit_projection(constant, 8)(constant).abs().max() == 0
    with pytest.raises(ValueError):
        fit_projection(randn(10, 3), 2, "pls")
