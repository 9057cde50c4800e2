"""What the seeds say of an arm, and of a claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lit_wm.ablation.definition import Claim
from lit_wm.evaluation.statistics import paired_t, t_interval

LEAST_SEEDS, ROUNDING = 3, 1e-9
Scores = Mapping[str, Mapping[int, Mapping[str, float | None]]]  # arm -> seed -> tag -> value


@dataclass(frozen=True)
class Verdict:
    """Of one claim.

    Args:
        word: ``supported``: the whole 95 % interval of the paired difference is above 0; ``contradicted``: below 0;
            ``undecided at this budget``: neither, or fewer than three seeds, or differences without spread, which say nothing
            of the next seed; ``not measured``: fewer than two seeds have both arms.
        seeds: how many have both.
        mean: of above less below; None where it is not measured.
        low: end of the interval.
        high: its other end.
    """

    word: str
    seeds: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def judge_claim(claim: Claim, scores: Scores) -> Verdict:
    """A paired t-interval over the seeds that both arms have."""
    above, below = (of_tag(scores, arm, claim.metric) for arm in (claim.above, claim.below))
    both = sorted(above.keys() & below.keys())
    if len(both) < 2:
        return Verdict("not measured", len(both))
    mean, low, high = paired_t([above[seed] for seed in both], [below[seed] for seed in both])
    decided = len(both) >= LEAST_SEEDS and high - low > ROUNDING
    word = "undecided at this budget" if not decided or low <= 0 <= high else "supported" if low > 0 else "contradicted"
    return Verdict(word, len(both), mean, low, high)


def of_tag(scores: Scores, arm: str, tag: str) -> dict[int, float]:
    """Seed -> value of an arm, without the seeds that have none."""
    values = {seed: numbers.get(tag) for seed, numbers in scores.get(arm, {}).items()}
    return {seed: value for seed, value in values.items() if value is not None}


def summary(values: Mapping[int, float]) -> tuple[float, float, float] | None:
    """Mean and t-interval over seeds; the interval is empty (mean, mean, mean) for one seed; None for none."""
    if not values:
        return None
    if len(values) == 1:
        return (next(iter(values.values())),) * 3
    return t_interval(list(values.values()))
