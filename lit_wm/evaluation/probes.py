"""State probes: how much of the true state can be read, linearly, from what a model imagines.

For one factor of ``state`` and one horizon: project the features to 64 numbers (``projection.py``), fit a ridge regression
on training clips, choose its penalty on validation clips, score it on test clips. The three sets hold different
**episodes**; a split by frame lets a probe recognise the clip (R2 .9 for a label that nothing predicts).

* continuous factors score R2; discrete ones score balanced accuracy rescaled so that chance is 0 and perfect is 1;
* where a factor is undefined (NaN, such as the ball between two points) the clip is left out for that factor alone;
* scores come as vectors over bootstrap draws (``statistics.EpisodeDraws``): entry 0 is the point estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import Factor
from lit_wm.evaluation.projection import Projection, fit_projection
from lit_wm.evaluation.statistics import EpisodeDraws

PENALTIES = tuple(10.0**p for p in range(-6, 3))  # per sample, for features of unit variance
MIN_SAMPLES = 16  # defined values that each split must hold before a number is printed


@dataclass(frozen=True)
class Split:
    """Features and true state of one split.

    Args:
        x_nd: (n,D) features.
        y_nf: (n,F) float state, NaN where undefined.
    """

    x_nd: Tensor
    y_nf: Tensor


@dataclass(frozen=True)
class FactorProbe:
    """Ridge weights of one factor on projected features.

    Args:
        weight_po: (P+1,O) the last row being the bias; O is 1, or the number of classes.
        classes: the values of a discrete factor; None for a continuous one.
        low: the least value in training. Predictions are clamped to the range seen there, since one feature that never
            moved in training can otherwise throw a single clip's prediction arbitrarily far and ruin the whole score.
        high: the greatest.
    """

    weight_po: Tensor
    classes: Tensor | None = None
    low: float = -torch.inf
    high: float = torch.inf

    def predict(self, z_np: Tensor) -> Tensor:
        """(n,P) projected features -> (n,) predicted values of the factor."""
        out = _with_bias(z_np) @ self.weight_po
        return out[:, 0].clamp(self.low, self.high) if self.classes is None else self.classes[out.argmax(1)]


@dataclass(frozen=True)
class StateProbe:
    """A projection and one probe per factor; a factor without a probe says why.

    Args:
        projection: fitted on the training features.
        factors: one probe per factor, or the reason (str) why none was fitted.
    """

    projection: Projection
    factors: tuple[FactorProbe | str, ...]


def fit_state_probe(
    train: Split, val: Split, factors: tuple[Factor, ...], dims: int = 64, kind: str = "pca", seed: int = 0
) -> StateProbe:
    """Fit a probe per factor on training clips, penalties by validation clips."""
    projection = fit_projection(train.x_nd, dims, kind, seed)
    z_train, z_val = projection(train.x_nd), projection(val.x_nd)
    probes: list[FactorProbe | str] = []
    for i, factor in enumerate(factors):
        y, y_val = train.y_nf[:, i].double(), val.y_nf[:, i].double()
        keep, keep_val = y.isfinite(), y_val.isfinite()
        if min(int(keep.sum()), int(keep_val.sum())) < MIN_SAMPLES:
            probes.append(f"defined in {int(keep.sum())} training and {int(keep_val.sum())} validation clips only")
        else:
            fit = _fit_discrete if factor.kind == "discrete" else _fit_continuous
            probes.append(fit(z_train[keep], y[keep], z_val[keep_val], y_val[keep_val]))
    return StateProbe(projection, tuple(probes))


def score_state_probe(
    probe: StateProbe, test: Split, factors: tuple[Factor, ...], draws: EpisodeDraws
) -> list[np.ndarray | str]:
    """Score on test clips.

    Returns:
        For each factor (1+R,) scores, or the reason why there is none.
    """
    z_test = probe.projection(test.x_nd)
    scores: list[np.ndarray | str] = []
    for i, factor in enumerate(factors):
        fitted, y = probe.factors[i], test.y_nf[:, i].double()
        keep = y.isfinite()
        if isinstance(fitted, str):
            scores.append(fitted)
        elif int(keep.sum()) < MIN_SAMPLES:
            scores.append(f"defined in {int(keep.sum())} test clips only")
        elif len(y[keep].unique()) < 2:
            scores.append("does not vary in the test clips")
        else:
            score = balanced_accuracy_skill if factor.kind == "discrete" else r2
            scores.append(score(y.numpy(), fitted.predict(z_test).numpy(), draws, keep.numpy()))
    return scores


def r2(y: np.ndarray, predicted: np.ndarray, draws: EpisodeDraws, keep: np.ndarray) -> np.ndarray:
    """Coefficient of determination against the mean of the drawn clips: (n,), (n,) -> (1+R,)."""
    y_centred = y - y[keep].mean()  # R2 is invariant to it, and the sums below lose no digits
    columns = np.stack([np.ones_like(y), y_centred, y_centred**2, (y - predicted) ** 2], 1)
    count, total, squares, residual = draws.sums(columns, keep).T
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = squares - total**2 / count
        return np.where(
            variation > 1e-12 * squares, 1 - residual / variation, np.nan
        )  # a draw may hold one value alone


def balanced_accuracy_skill(y: np.ndarray, predicted: np.ndarray, draws: EpisodeDraws, keep: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that a draw holds, rescaled to chance 0 and perfect 1: (n,), (n,) -> (1+R,).

    A draw may miss a rare class: it is judged on the classes it holds, and chance is one of those. NaN for a draw of one class.
    """
    classes = np.unique(y[keep])
    member = y[:, None] == classes
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = draws.sums(member & (predicted == y)[:, None], keep) / draws.sums(member, keep)
        held = np.isfinite(recall).sum(1)
        accuracy, chance = np.nansum(recall, 1) / held, 1 / held
        return np.where(held > 1, (accuracy - chance) / (1 - chance), np.nan)


def skill(score: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """``(score - floor) / (1 - floor)``, with a floor of at least 0: predicting the mean needs no model."""
    floor = np.maximum(floor, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (score - floor) / (1 - floor)


def _with_bias(z_np: Tensor) -> Tensor:
    return torch.cat([z_np, torch.ones_like(z_np[:, :1])], 1)


def _ridge_path(z_np: Tensor, y_no: Tensor, weight_n: Tensor) -> list[Tensor]:
    """Weighted ridge with an unpenalised bias, for every penalty at once: a list of (P+1,O)."""
    weight_n = weight_n / weight_n.sum()
    z_mean, y_mean = weight_n @ z_np, weight_n @ y_no
    z, y = z_np - z_mean, y_no - y_mean
    variance, axes = torch.linalg.eigh(z.T @ (weight_n[:, None] * z))
    target = axes.T @ (z.T @ (weight_n[:, None] * y))
    path = []
    for penalty in PENALTIES:
        slope = axes @ (target / (variance.clamp(min=0) + penalty)[:, None])
        path.append(torch.cat([slope, (y_mean - z_mean @ slope)[None]]))
    return path


def _fit_continuous(z: Tensor, y: Tensor, z_val: Tensor, y_val: Tensor) -> FactorProbe:
    """Ridge regression; the penalty with the least validation error."""
    low, high = y.min().item(), y.max().item()
    path = _ridge_path(z, y[:, None], torch.ones_like(y))
    probes = [FactorProbe(weight, None, low, high) for weight in path]
    return min(probes, key=lambda probe: (probe.predict(z_val) - y_val).pow(2).mean().item())


def _fit_discrete(z: Tensor, y: Tensor, z_val: Tensor, y_val: Tensor) -> FactorProbe:
    """Ridge on one-hot classes, each class weighing the same (the score is balanced); best validation accuracy."""
    classes, label, count = y.unique(return_inverse=True, return_counts=True)
    path = _ridge_path(z, torch.nn.functional.one_hot(label, len(classes)).double(), 1 / count[label].double())
    probes = [FactorProbe(weight, classes) for weight in path]

    def validation_accuracy(probe: FactorProbe) -> float:
        right = (probe.predict(z_val) == y_val).double()
        return torch.stack([right[y_val == value].mean() for value in y_val.unique()]).mean().item()

    return max(probes, key=validation_accuracy)
