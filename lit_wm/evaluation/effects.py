"""What an action really did, as a class: the label that a latent action ought to recover.

The command and its effect differ (a paddle at its stop does not move, sticky actions repeat the last command), and a model
that only sees frames can at best find the effect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.experience import Factor

UNDEFINED = -1
STILL = 1e-6  # a displacement below it is rounding


def true_effect(state_btf: Tensor, factors: tuple[Factor, ...]) -> tuple[Tensor, str] | None:
    """The effect of each action, from the names of the factors.

    Args:
        state_btf: (B,T,F) true state.
        factors: its columns.

    Returns:
        (B,T-1) int64 classes with -1 where undefined, and what they mean; None when the data holds no factor of an agent.
    """
    column = {factor.name: i for i, factor in enumerate(factors)}
    for names, meaning in ((("player_y",), "sign of the paddle's movement"), (("agent_x", "agent_y"), "executed move")):
        if all(name in column for name in names):
            moved = state_btf[..., [column[name] for name in names]].diff(dim=1)
            sign = torch.where(moved.abs() < STILL, 0.0, moved.sign()).nan_to_num().long()
            classes = torch.zeros_like(sign[..., 0])
            for axis in sign.unbind(-1):
                classes = classes * 3 + axis + 1
            return torch.where(moved.isfinite().all(-1), classes, UNDEFINED), meaning
    return None
