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
AGENTS = ((("player_y",), "sign of the paddle's movement"), (("agent_x", "agent_y"), "executed move"))
NO_AGENT = "no factor of the data tells where an agent is"


def agent_columns(factors: tuple[Factor, ...]) -> tuple[list[int], str] | None:
    """The A columns of ``state`` that tell where the agent is, and what its effects mean; None where no factor does."""
    column = {factor.name: i for i, factor in enumerate(factors)}
    for names, meaning in AGENTS:
        if all(name in column for name in names):
            return [column[name] for name in names], meaning
    return None


def effect_class(moved: Tensor) -> Tensor:
    """Displacements (...,A) as classes: int64 (...), the signs of the axes read as a number of base 3; -1 where undefined.

    No movement is the middle class, :func:`still_class`.
    """
    sign = torch.where(moved.abs() < STILL, 0.0, moved.sign()).nan_to_num().long()
    classes = torch.zeros_like(sign[..., 0])
    for axis in sign.unbind(-1):
        classes = classes * 3 + axis + 1
    return torch.where(moved.isfinite().all(-1), classes, UNDEFINED)


def still_class(axes: int) -> int:
    """The class of no movement along so many axes."""
    return (3**axes - 1) // 2


def true_effect(state_btf: Tensor, factors: tuple[Factor, ...]) -> tuple[Tensor, str] | None:
    """The effect of each action, from the names of the factors.

    Args:
        state_btf: (B,T,F) true state.
        factors: its columns.

    Returns:
        (B,T-1) int64 classes with -1 where undefined, and what they mean; None when the data holds no factor of an agent.
    """
    if (found := agent_columns(factors)) is None:
        return None
    columns, meaning = found
    return effect_class(state_btf[..., columns].diff(dim=1)), meaning
