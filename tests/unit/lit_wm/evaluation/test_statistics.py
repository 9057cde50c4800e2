"""Intervals: known values, and coverage on synthetic data."""

import numpy as np
import pytest

from lit_wm.evaluation.statistics import (
    Number,
    episode_draws,
    not_applicable,
    paired_t,
    summarise,
    t_interval,
    wilson,
)


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = [low <= 0.3 <= high for _, low, high in (t_interval(rng.normal(0.3, 2, 5)) for _ in range(1000))]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_t_interval_by_hand():
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert (
        mean == 2 and high - 2 == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5) and 2 - low == pytest.approx(high - 2)
    )


def test_pairing_removes_what_seeds_share():
    seed_effect = np.array([0.0, 5.0, -3.0, 8.0])
    a, b = seed_effect + np.array([1.0, 1.1, 0.9, 1.0]), seed_effect
    _, low, high = paired_t(a, b)
    assert 0.8 < low < 1 < high < 1.2
    unpaired = t_interval(a)
    assert unpaired[2] - unpaired[1] > 10 * (high - low)


def test_wilson_known_values_and_edges():
    assert wilson(48, 50)[1:] == pytest.approx((0.865, 0.989), abs=1e-3)
    rate, low, high = wilson(20, 20)
    assert rate == 1 and 0.8 < low < 0.85 and high == 1
    assert wilson(0, 10)[1] == 0


@pytest.mark.parametrize("call", [lambda: t_interval([1.0]), lambda: paired_t([1, 2], [1]), lambda: wilson(3, 2)])
def test_what_says_nothing_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_cluster_bootstrap_covers_where_the_naive_one_does_not():
    """Clips of an episode share its luck; redrawing clips instead of episodes would claim far too much."""
    rng, hits, naive_hits = np.random.default_rng(1), 0, 0
    episode = np.repeat(np.arange(30), 10)
    for repeat in range(200):
        values = np.repeat(rng.normal(0, 1, 30), 10) + rng.normal(0, 0.3, 300)
        for clusters, kind in ((episode, "episodes"), (np.arange(300), "clips")):
            number = summarise(episode_draws(clusters, 200, repeat).means(values), 300, 30)
            inside = number.low <= 0 <= number.high
            hits, naive_hits = hits + (inside and kind == "episodes"), naive_hits + (inside and kind == "clips")
    assert 0.88 <= hits / 200 <= 0.99
    assert naive_hits / 200 < 0.6


def test_draws_row_zero_is_the_sample_itself_and_sums_match():
    draws = episode_draws(np.array([3, 3, 7, 9]), 50, 0)
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert draws.means(values)[0] == values.mean() and draws.episodes == 3
    assert (draws.weights.sum(1) == 3).all()
    keep = np.array([True, False, True, True])
    assert draws.sums(values, keep)[0] == 13
    by_hand = (draws.weights[5] * [3.0, 4.0, 8.0]).sum()
    assert draws.sums(values)[5] == pytest.approx(by_hand)


def test_one_episode_gives_no_interval_and_nan_gives_a_reason():
    assert summarise(np.array([0.5, 0.5, 0.5]), 10, 1) == Number(0.5, 10)
    assert summarise(np.array([np.nan, 0.5]), 10, 3).reason


def test_number_to_dict_keeps_null_and_drops_what_is_empty():
    assert not_applicable("why", 0).to_dict() == {"value": None, "n": 0, "reason": "why"}
    assert Number(0.0, 3).to_dict() == {"value": 0.0, "n": 3}
