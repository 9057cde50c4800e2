"""How far a picture lies from the data: what a model makes of something unlike all it has seen, nothing vouches for.

The measure is plain: mean squared error over all pixels and channels, in [0, 1], to the nearest held-out frame. What is near and
what is far the data itself says: for each held-out frame, how near the nearest frame of *another* episode is. It knows nothing of
meaning: a world moved by a few pixels lies far away, and one in which a small thing is missing lies near.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """Where a picture lies.

    Args:
        error: mean squared error to the nearest frame.
        nearer: share of the frames that have one of another episode nearer than that; None where there is but one episode.
        frames: that it was compared with.
        episodes: that they are of.
    """

    error: float
    nearer: float | None
    frames: int
    episodes: int


def squared_errors(a_nd: Tensor, b_md: Tensor) -> Tensor:
    """(n,D) and (m,D) uint8 -> (n,m) float64 mean squared errors of numbers in [0, 1].

    Sums of products of whole numbers below 2^53 are exact in float64, so equal pictures are at 0 and not merely near it.
    """
    a_nd, b_md = a_nd.double(), b_md.double()
    squares = a_nd.square().sum(1)[:, None] + b_md.square().sum(1) - 2 * a_nd @ b_md.T
    return squares / (255**2 * a_nd.shape[1])


def distance(picture_chw: Tensor, frames_nchw: Tensor, episode_n: Tensor) -> Distance:
    """Where a picture lies among frames.

    Args:
        picture_chw: uint8.
        frames_nchw: uint8, held out from training.
        episode_n: which episode each is of.
    """
    frames_nd = frames_nchw.flatten(1)
    error = float(squared_errors(picture_chw.flatten()[None], frames_nd).min())
    episodes = len(episode_n.unique())
    nearer = None
    if episodes > 1:
        same = episode_n[:, None] == episode_n
        own_n = squared_errors(frames_nd, frames_nd).masked_fill(same, torch.inf).amin(1)
        nearer = float((own_n < error).double().mean())
    return Distance(error, nearer, len(frames_nd), episodes)
