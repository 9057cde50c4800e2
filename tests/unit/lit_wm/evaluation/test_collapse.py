"""The collapse panel, and the traps it is there for."""

import pytest
import torch

from lit_wm.evaluation.collapse import collapse_panel, effective_rank, nmse, retrieval


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_predicting_the_mean_scores_an_nmse_of_one_and_the_truth_zero():
    target = randn(400, 8)
    assert nmse(target.mean(0).expand(400, 8), target) == pytest.approx(1, abs=1e-6)
    assert nmse(target, target) == 0
    assert nmse(1e3 * (target + 5), 1e3 * (target + 5)) == 0
    shift = nmse(target + 0.5, target)
    assert nmse(7 * (target + 0.5), 7 * target) == pytest.approx(shift, rel=1e-6), (
        "the scale is the route's own business"
    )


def test_constant_targets_have_no_nmse_even_with_rounding_noise():
    assert nmse(torch.ones(50, 4), torch.ones(50, 4)) is None
    assert nmse(torch.ones(50, 4), 1 + 1e-7 * randn(50, 4)) is None


def test_retrieval_of_truth_chance_and_ties():
    target = randn(300, 8)
    assert retrieval(target, target) == 1
    assert retrieval(randn(300, 8, seed=1), target) < 0.03
    assert retrieval(torch.zeros(300, 8), torch.zeros(300, 8)) == pytest.approx(1 / 300), "a tie is no hit"
    twice = torch.cat([target, target])
    assert retrieval(twice, twice) == pytest.approx(0.5)


def test_rank_by_hand_and_offset():
    assert effective_rank(torch.eye(6), centred=False) == pytest.approx(6)
    direction = randn(200, 1) @ randn(1, 10, seed=1)
    assert effective_rank(direction) == pytest.approx(1, abs=1e-3)
    healthy = randn(500, 10)
    assert effective_rank(healthy) == pytest.approx(effective_rank(healthy + 1000), rel=1e-3)
    assert effective_rank(healthy + 1000, centred=False) < 1.1


def test_rank_alone_calls_a_collapsed_representation_healthier():
    """The reason why the panel has four readings."""
    healthy = randn(500, 3) @ randn(3, 16, seed=1)
    collapsed = 1 + 1e-3 * randn(500, 16, seed=2)
    good = collapse_panel(healthy + 0.01 * randn(500, 16, seed=3), healthy, healthy)
    bad = collapse_panel(torch.ones(500, 16) + 1e-3 * randn(500, 16, seed=4), collapsed, collapsed)
    assert bad["collapse/effective_rank"].value > good["collapse/effective_rank"].value
    assert bad["collapse/nmse"].value > 1 > 0.1 > good["collapse/nmse"].value
    assert bad["collapse/retrieval"].value < 0.02 < 0.9 < good["collapse/retrieval"].value
    assert bad["collapse/std"].value < 0.01 * good["collapse/std"].value
