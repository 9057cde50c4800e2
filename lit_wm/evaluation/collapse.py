"""Has the representation collapsed? Four readings, because each alone can be fooled.

* **Rank alone inverts the verdict.** The effective rank is blind to scale: rounding noise around a constant has full rank. In
  our toy, collapsed networks reached 20 to 28 of 32, healthy ones 11 to 15. The uncentred variant (RankMe, Garrido et al. 2023)
  errs the other way: a large constant offset makes a healthy representation look like rank one. Read them side by side, last.
* **std** falls with collapse, but its scale is the route's own business.
* **NMSE** = E|z'-z|^2 / Var(z): 1 is what predicting the mean scores; collapse drives the variance, not the ratio, to zero.
* **retrieval**: is the predicted z nearer to its own target than to those of other moments? Chance is 1/n.

:func:`diagnosis` puts them together, for an alarm while a model trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_wm.evaluation.statistics import Number, not_applicable

FLOAT_NOISE = 1e-12  # of the mean square: a smaller variance is float32 rounding of a constant


def mean_std(z_nd: Tensor) -> float:
    """Standard deviation of each feature, averaged."""
    return z_nd.double().std(0).mean().item()


def nmse(predicted_nd: Tensor, target_nd: Tensor) -> float | None:
    """E|z'-z|^2 / Var(z), summed over features; None when the targets do not vary at all."""
    predicted_nd, target_nd = predicted_nd.double(), target_nd.double()
    variance = target_nd.var(0, unbiased=False).sum()
    if variance <= FLOAT_NOISE * target_nd.pow(2).sum(1).mean():
        return None
    return ((predicted_nd - target_nd).pow(2).sum(1).mean() / variance).item()


def retrieval(predicted_nd: Tensor, target_nd: Tensor) -> float:
    """Share of predictions whose nearest target is their own. Exact ties share the credit, so a constant scores 1/n."""
    distance = torch.cdist(predicted_nd.double(), target_nd.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance == distance.min(1, keepdim=True).values
    return (nearest.diagonal().double() / nearest.sum(1)).mean().item()


def effective_rank(z_nd: Tensor, centred: bool = True) -> float:
    """exp(entropy of the normalised singular values), Roy & Vetterli 2007; uncentred it is RankMe."""
    z_nd = z_nd.double()
    values = torch.linalg.svdvals(z_nd - z_nd.mean(0) if centred else z_nd)
    share = values / values.sum().clamp(min=1e-300)
    return torch.exp(-torch.xlogy(share, share).sum()).item()


def collapse_panel(predicted_nd: Tensor, target_nd: Tensor, features_nd: Tensor) -> dict[str, Number]:
    """The panel.

    Args:
        predicted_nd: (n,D) features imagined one step ahead.
        target_nd: (n,D) what a perfect prediction would equal.
        features_nd: (m,D) closed-loop features of test clips.
    """
    n, error = len(predicted_nd), nmse(predicted_nd, target_nd)
    constant = not_applicable("the targets do not vary: collapsed to a constant", n)
    return {
        "collapse/std": Number(mean_std(features_nd), len(features_nd)),
        "collapse/nmse": constant if error is None else Number(error, n),
        "collapse/retrieval": Number(retrieval(predicted_nd, target_nd), n),
        "collapse/retrieval_chance": Number(1 / n, n),
        "collapse/effective_rank": Number(effective_rank(features_nd), len(features_nd)),
        "collapse/rankme": Number(effective_rank(features_nd, centred=False), len(features_nd)),
    }


@dataclass(frozen=True)
class Readings:
    """What a model's representation and its predictions look like at one moment of training.

    Attributes:
        std: over frames, averaged over channels, at the place where it is largest: tokens that only say where they are do not vary,
            and most places of a picture may be empty for ever.
        rms: root mean square of the representation; a constant is as large as it is.
        nmse: of the predictions; None where the targets do not vary.
        retrieval: share of predictions nearest to their own target.
        chance: of that.
        rank: effective rank of the channels, centred at every place.
        rankme: effective rank, uncentred.
        predicted_share: standard deviation of the predictions over that of their targets.
    """

    std: float
    rms: float
    nmse: float | None
    retrieval: float
    chance: float
    rank: float
    rankme: float
    predicted_share: float

    @staticmethod
    def of(predicted_nd: Tensor, target_nd: Tensor, z_mpd: Tensor) -> Readings:
        """Take the readings of n predictions and of m frames with D channels at P places; n and m at least 2."""
        target_std, centred_mpd = mean_std(target_nd), z_mpd - z_mpd.mean(0)
        return Readings(
            std=z_mpd.double().std(0).mean(-1).max().item(),
            rms=z_mpd.double().square().mean().sqrt().item(),
            nmse=nmse(predicted_nd, target_nd),
            retrieval=retrieval(predicted_nd, target_nd),
            chance=1 / len(predicted_nd),
            rank=effective_rank(centred_mpd.flatten(0, 1), centred=False),
            rankme=effective_rank(z_mpd.flatten(0, 1), centred=False),
            predicted_share=mean_std(predicted_nd) / target_std if target_std > 0 else 0.0,
        )

    def __str__(self) -> str:
        error = "undefined" if self.nmse is None else f"{self.nmse:.3g}"
        return (
            f"std {self.std:.3g}, NMSE {error}, retrieval {self.retrieval:.1%} (chance {self.chance:.1%}), effective rank"
            f" {self.rank:.1f}, RankMe {self.rankme:.1f}, predictions vary {self.predicted_share:.1%} as much as targets"
        )


def diagnosis(
    now: Readings, start: Readings, least_std: float, least_rank: float, least_predicted: float
) -> str | None:
    """What has collapsed, in a few words; None where nothing has.

    Args:
        now: the readings.
        start: those at the beginning.
        least_std: share of the standard deviation at the start, and of the representation's own size, below which it may be one constant:
            it is, if predictions do not find their own target three times as often as by chance.
        least_rank: effective rank below which it varies along hardly more than a line. (Constants are told by their size first: their
            rounding noise has full rank.)
        least_predicted: share of the targets' standard deviation below which the predictions are one constant.
    """
    lost = now.retrieval <= 3 * now.chance
    if now.nmse is None or (lost and now.std < least_std * max(start.std, now.rms)):
        return "complete collapse: every frame gets the same representation"
    if now.rank < least_rank:
        return "dimensional collapse: representations vary along a line, or hardly more"
    if now.predicted_share < least_predicted:
        return "predictor collapse: representations vary, but the prediction is always the same"
    return None
