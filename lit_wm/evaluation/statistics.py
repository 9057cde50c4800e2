"""Intervals: over seeds (t), over paired seeds (paired t), of a success rate (Wilson), over episodes (cluster bootstrap).

Why these: on small samples the percentile bootstrap over 3 to 5 seeds covers far less than it says, and the t-interval on
seed means is close to nominal, so seeds get t-intervals. One run judged on many clips gets a bootstrap that redraws whole
**episodes**, because clips of one episode are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Number:
    """One cell of the scorecard: a value with its interval, or the reason why there is none.

    Args:
        value: the point estimate; None means not applicable, and then ``reason`` says why.
        n: how many independent-as-can-be things it rests on (clips, codes, seeds, repeats; the measure says which).
        low: lower end of the 95 % interval; None where no interval is claimed.
        high: upper end.
        reason: why there is no value.
    """

    value: float | None
    n: int = 0
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without what is empty."""
        return {key: value for key, value in asdict(self).items() if key == "value" or value not in (None, "")}


def not_applicable(reason: str, n: int = 0) -> Number:
    """A cell without a value, and why."""
    return Number(None, n, reason=reason)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and Student-t interval of the mean of independent values, one per seed.

    Returns:
        mean, low, high.

    Raises:
        ValueError: for fewer than two values, which say nothing about spread.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2:
        raise ValueError(f"an interval over seeds needs two or more values, not {len(x)}")
    half = stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def paired_t(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """t-interval of the mean difference ``a - b`` where entry i of both comes from the same seed.

    Raises:
        ValueError: when the lengths differ or there are fewer than two pairs.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must be as many on both sides, not {len(a)} and {len(b)}")
    return t_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), level)


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float, float]:
    """Rate and Wilson interval of ``successes`` out of ``n`` (Wilson 1927): sane at 0 %, at 100 % and for small n.

    Raises:
        ValueError: when there are no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} trials is no rate")
    z, rate = stats.norm.ppf(0.5 + level / 2), successes / n
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    return rate, float(max(0.0, centre - half)), float(min(1.0, centre + half))


@dataclass(frozen=True)
class EpisodeDraws:
    """How often each episode was drawn, in the sample itself (row 0, all ones) and in every bootstrap sample.

    A score is computed for all rows at once from sums per episode. Row 0 is then the point estimate and the rest its
    bootstrap distribution. Whatever is derived from scores entry by entry (a difference, a skill, a mean over factors)
    is paired by construction, because row r of everything used the same episodes.

    Args:
        weights: (1+R,E) float64 counts.
        row: (n,) for each clip its column in ``weights``.
    """

    weights: np.ndarray
    row: np.ndarray

    @property
    def episodes(self) -> int:
        """Number of distinct episodes E."""
        return self.weights.shape[1]

    def sums(self, values: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """Weighted sums: (n, ...) values per clip -> (1+R, ...); ``keep`` (n,) bool leaves clips out."""
        row = self.row if keep is None else self.row[keep]
        values = np.asarray(values, dtype=float) if keep is None else np.asarray(values, dtype=float)[keep]
        per_episode = np.zeros((self.episodes, *values.shape[1:]))
        np.add.at(per_episode, row, values)
        return np.tensordot(self.weights, per_episode, 1)

    def means(self, values: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
        """Weighted means: (n,) values per clip -> (1+R,)."""
        count = self.sums(np.ones(len(values)), keep)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.sums(values, keep) / count


def episode_draws(episode: np.ndarray, draws: int = 1000, seed: int = 0) -> EpisodeDraws:
    """Cluster bootstrap over episodes.

    Args:
        episode: (n,) the episode of each clip.
        draws: bootstrap samples R.
        seed: the same seed gives the same samples, so that two runs judged on the same clips are paired.
    """
    names, row = np.unique(np.asarray(episode), return_inverse=True)
    count = len(names)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return EpisodeDraws(np.concatenate([np.ones((1, count)), drawn]), row)


def summarise(scores: np.ndarray, n: int, episodes: int, level: float = LEVEL) -> Number:
    """A vector over :class:`EpisodeDraws` rows -> value with its percentile interval (none for a single episode)."""
    if not np.isfinite(scores[0]):
        return not_applicable("undefined on these clips", n)
    finite = scores[1:][np.isfinite(scores[1:])]
    if episodes < 2 or len(finite) < 0.9 * (len(scores) - 1) or not len(finite):
        return Number(float(scores[0]), n)
    low, high = np.percentile(finite, [50 * (1 - level), 50 * (1 + level)])
    return Number(float(scores[0]), n, float(low), float(high))
