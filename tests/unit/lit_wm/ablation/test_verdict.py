"""A verdict is the paired interval's, and nothing else's."""

import pytest

from lit_wm.ablation.definition import Claim
from lit_wm.ablation.verdict import judge_claim, summary

CLAIM = Claim("a beats b", "nobody", "", "score", "a", "b")


def scores(a, b):
    return {name: {seed: {"score": value} for seed, value in of.items()} for name, of in (("a", a), ("b", b))}


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([1.0, 1.1, 1.2], [0.0, 0.2, 0.1], "supported"),
        ([0.0, 0.2, 0.1], [1.0, 1.1, 1.2], "contradicted"),
        ([1.0, 0.0, 0.5], [0.0, 1.0, 0.6], "undecided at this budget"),
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], "undecided at this budget"),  # equal models differ by exactly 0
    ],
)
def test_words(a, b, word):
    verdict = judge_claim(CLAIM, scores(dict(enumerate(a)), dict(enumerate(b))))
    assert verdict.word == word and verdict.low <= verdict.mean <= verdict.high and verdict.seeds == 3
    assert verdict.mean == pytest.approx(sum(a) / 3 - sum(b) / 3)


def test_only_seeds_that_both_arms_have_are_paired():
    verdict = judge_claim(CLAIM, scores({0: 1.0, 1: 1.1, 2: None, 3: 9.0}, {0: 0.0, 1: 0.0, 2: 0.0}))
    assert verdict.seeds == 2 and verdict.mean == pytest.approx(1.05)
    assert judge_claim(CLAIM, scores({0: 1.0}, {0: 0.0})).word == "not measured"
    assert judge_claim(CLAIM, {}).word == "not measured"


def test_pairs_are_of_the_same_seed():
    """Seeds differ by more than arms do: paired by seed the difference is sure, and otherwise it drowns."""
    a, b = {0: 1.1, 1: 5.12, 2: 9.11}, {2: 9.0, 0: 1.0, 1: 5.0}
    assert judge_claim(CLAIM, scores(a, b)).word == "supported"


@pytest.mark.parametrize(("a", "b"), [([0.3] * 5, [0.1 + 0.2] * 5), ([1.0] * 5, [0.999] * 5), ([1.0, 1.1], [0.0, 0.1])])
def test_rounding_differences_without_spread_and_two_seeds_decide_nothing(a, b):
    assert judge_claim(CLAIM, scores(dict(enumerate(a)), dict(enumerate(b)))).word == "undecided at this budget"


def test_a_summary_says_as_much_as_its_seeds_do():
    assert summary({}) is None and summary({3: 0.5}) == (0.5, 0.5, 0.5)
    mean, low, high = summary({0: 1.0, 1: 2.0, 2: 3.0})
    assert mean == 2.0 and low == pytest.approx(2 - 2.484, abs=1e-3) and high == pytest.approx(2 + 2.484, abs=1e-3)
