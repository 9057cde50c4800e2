"""The state of the Genie route: for each moment, a window of the last W frames' tokens and of the codes between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_wm.contract import State


def windows_of(tokens_btn: Tensor, codes_bt: Tensor, valid_bt: Tensor, frames: int) -> State:
    """Windows that end at each moment of a sequence.

    Args:
        tokens_btn: (B,T,N) int64.
        codes_bt: (B,T) int64, or (B,T,A) where actions are vectors; entry t is the action that **led to** frame t.
        valid_bt: (B,T) bool; False where there is no frame.
        frames: W.

    Returns:
        ``tokens`` (B,T,W,N), ``codes`` (B,T,W[,A]) and ``valid`` (B,T,W) with the current frame in the last place; what lies
        before the beginning of the sequence is 0 and not valid. (B,T,...) may be views that share memory.
    """
    return {
        "tokens": last_ones(tokens_btn, frames),
        "codes": last_ones(codes_bt, frames),
        "valid": last_ones(valid_bt, frames),
    }


def last_ones(x_bt: Tensor, frames: int) -> Tensor:
    """(B,T,...) -> (B,T,W,...): at each moment the last W entries, zeros before the first."""
    before = (*[0] * (2 * (x_bt.ndim - 2)), frames - 1, 0)
    return F.pad(x_bt, before).unfold(1, frames, 1).movedim(-1, 2)


def continue_windows(state: State, tokens_bkn: Tensor, codes_bk: Tensor) -> State:
    """Windows after each of K more frames: (B,W,...) and (B,K,...) -> (B,K,W,...)."""
    frames = state["valid"].shape[1]
    tokens = torch.cat([state["tokens"], tokens_bkn], 1)
    codes = torch.cat([state["codes"], codes_bk], 1)
    valid = F.pad(state["valid"], (0, codes_bk.shape[1]), value=True)
    return {key: window[:, -codes_bk.shape[1] :] for key, window in windows_of(tokens, codes, valid, frames).items()}


def groups_by_length(valid_bw: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(number of valid frames, indices of the windows that have so many), so that a group can be computed as one clip."""
    length_b = valid_bw.sum(-1)
    for length in length_b.unique().tolist():
        yield length, (length_b == length).nonzero()[:, 0]
