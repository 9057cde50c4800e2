"""Has the representation collapsed? Four readings, because each alone can be fooled.

* **Rank alone inverts the verdict.** The effective rank is blind to scale: rounding noise around a constant has full rank. In
  our toy, collapsed networks reached 20 to 28 of 32, healthy ones 11 to 15. The uncentred variant (RankMe, Garrido et al. 2023)
  errs the other way: a large constant offset makes a healthy representation look like rank one. Read them side by side, last.
* **std** falls with collapse, but its scale is the route's own business.
* **NMSE** = E|z'-z|^2 / Var(z): 1 is what predicting the mean scores; collapse drives the variance, not the ratio, to zero.
* **retrieval**: is the predicted z nearer to its own target than to those of other moments? Chance is 1/n.
"""

from __future__ import annotations

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
