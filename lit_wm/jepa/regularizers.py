"""What keeps representations from collapsing without a target network: VICReg's terms and SIGReg.

All are taken over the **global** batch: under data parallelism every rank gets the value, and its share of the gradient, that one
process would get from all the samples together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_wm.distributed import global_mean, world_size
from lit_wm.errors import UserError

EPSILON = 1e-4  # inside the square root of VICReg's standard deviation


def variance_hinge(z: Tensor, over_ranks: bool = True) -> Tensor:
    """mean relu(1 - std), VICReg's variance term (Bardes et al., arXiv:2105.04906, equation 1, with gamma = 1).

    Args:
        z: (..., N, D): N samples of D channels; leading axes (places, moments) are judged apart and averaged.
        over_ranks: the samples are those of all ranks. False where they are not a batch, such as the moments of one clip.

    Raises:
        UserError: fewer than two samples have no variance.
    """
    _, variance = _centred(z, over_ranks)
    return F.relu(1 - (variance + EPSILON).sqrt()).mean()


def covariance(z: Tensor, over_ranks: bool = True) -> Tensor:
    """Mean square of the covariances between different channels: sum of C_ij^2 over i != j, divided by D (D - 1).

    VICReg (equation 4) divides by D; PLDM and eb_jepa, whose weights are published for this form, by D (D - 1).

    Args:
        z, over_ranks: as for :func:`variance_hinge`.

    Raises:
        UserError: fewer than two samples, or a single channel.
    """
    if z.shape[-1] < 2:
        raise UserError("the covariance of channels needs at least 2 of them: raise the width")
    centred, variance = _centred(z, over_ranks)
    n, d = _samples(z, over_ranks), z.shape[-1]
    products = centred.mT @ centred
    c = (global_mean(products) * world_size() if over_ranks else products) / (n - 1)
    return ((c.square().sum((-2, -1)) - variance.square().sum(-1)) / (d * (d - 1))).mean()


def smoothness(z_btd: Tensor) -> Tensor:
    """mean (z_{t+1} - z_t)^2: representations that change slowly (PLDM, arXiv:2502.14819, ``sim_t``)."""
    return (z_btd[:, 1:] - z_btd[:, :-1]).square().mean()


def sigreg(z_tnd: Tensor, directions_dm: Tensor, knots: int = 17, last: float = 3.0) -> Tensor:
    """SIGReg: how far the samples are from N(0, I), by the Epps-Pulley test along random directions (LeJEPA, arXiv:2511.08544).

    For each direction a the characteristic function of a . z is compared with that of N(0, 1) at ``knots`` points of [0, last]:
    N sum_k w_k e^{-t_k^2 / 2} ((mean cos t_k a.z - e^{-t_k^2 / 2})^2 + (mean sin t_k a.z)^2), with w the trapezoid rule of both
    halves of the line. N is the number of samples of all ranks.

    Args:
        z_tnd: (..., N, D): N samples of D channels; leading axes (moments) are judged apart and averaged.
        directions_dm: (D, M) of length 1, the same on every rank: :func:`random_directions`.
        knots: points of the quadrature.
        last: where it ends.
    """
    t_k = torch.linspace(0, last, knots, dtype=z_tnd.dtype, device=z_tnd.device)
    step = last / (knots - 1)
    w_k = torch.full_like(t_k, 2 * step)
    w_k[0] = w_k[-1] = step
    normal_k = (-t_k.square() / 2).exp()
    angle_tnmk = (z_tnd @ directions_dm).unsqueeze(-1) * t_k
    real_tmk, imaginary_tmk = global_mean(angle_tnmk.cos().mean(-3)), global_mean(angle_tnmk.sin().mean(-3))
    distance_tm = ((real_tmk - normal_k).square() + imaginary_tmk.square()) @ (w_k * normal_k)
    return _samples(z_tnd, over_ranks=True) * distance_tm.mean()


def random_directions(dim: int, slices: int, seed: int, like: Tensor) -> Tensor:
    """(dim, slices) directions of length 1, uniform on the sphere; the seed is the number of the update, so that ranks agree.

    Args:
        dim: D.
        slices: M.
        seed: any number that is the same on all ranks and another one in the next update.
        like: a tensor whose type and device they get.
    """
    generator = torch.Generator().manual_seed(seed)
    directions_dm = torch.randn(dim, slices, generator=generator)
    return (directions_dm / directions_dm.norm(dim=0)).to(like)


def _samples(z: Tensor, over_ranks: bool) -> int:
    return z.shape[-2] * (world_size() if over_ranks else 1)


def _centred(z: Tensor, over_ranks: bool) -> tuple[Tensor, Tensor]:
    """(..., N, D) less the mean over samples, and (..., D) the unbiased variance."""
    n = _samples(z, over_ranks)
    if n < 2:
        raise UserError(
            "a variance over 1 sample is undefined: raise batch_size (or clip_length, for variance over time)"
        )
    mean = z.mean(-2, keepdim=True)
    centred = z - (global_mean(mean) if over_ranks else mean)
    squares = centred.square().mean(-2)
    return centred, (global_mean(squares) if over_ranks else squares) * n / (n - 1)
