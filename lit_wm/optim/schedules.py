"""Learning-rate schedules: each a pure function of the update, and a factory that hands it to an optimizer.

A factor multiplies the optimizer's own ``lr``. Step 0 is the first update; warm-up is linear, and the first update
already moves (factor ``1 / warmup_steps``, not 0). Step the scheduler once per update (Lightning: ``interval: step``).
"""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_from_zero(step: int, warmup_steps: int) -> float:
    """DreamerV3's: as :func:`warmup_constant_factor`, but the first update has rate 0; without warm-up 1."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def warmup_constant_factor(step: int, warmup_steps: int) -> float:
    """Linear rise to 1 over ``warmup_steps`` updates, then 1 for ever."""
    return min(1.0, (step + 1) / max(warmup_steps, 1))


def warmup_cosine_factor(step: int, warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> float:
    """Linear rise to 1, then half a cosine down to ``final_factor`` at ``total_steps`` and constant after it."""
    if step < warmup_steps:
        return warmup_constant_factor(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_linear_factor(
    step: int, warmup_steps: int, total_steps: int, final_factor: float = 0.0, decay_steps: int | None = None
) -> float:
    """Linear rise to 1, constant, then a straight line to ``final_factor`` over the last ``decay_steps`` updates.

    Without ``decay_steps`` the line begins where the warm-up ends; with it this is the "warm-up, stable, decay" schedule.
    """
    if step < warmup_steps:
        return warmup_constant_factor(step, warmup_steps)
    length = total_steps - warmup_steps if decay_steps is None else min(decay_steps, total_steps - warmup_steps)
    progress = min(1.0, max(0.0, (step - (total_steps - length)) / max(length, 1)))
    return 1 - (1 - final_factor) * progress


def warmup_constant(optimizer: Optimizer, warmup_steps: int) -> LambdaLR:
    """A scheduler with :func:`warmup_constant_factor` for every parameter group."""
    return LambdaLR(optimizer, lambda step: warmup_constant_factor(step, warmup_steps))


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> LambdaLR:
    """A scheduler with :func:`warmup_cosine_factor` for every parameter group."""
    return LambdaLR(optimizer, lambda step: warmup_cosine_factor(step, warmup_steps, total_steps, final_factor))


def warmup_linear(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, final_factor: float = 0.0, decay_steps: int | None = None
) -> LambdaLR:
    """A scheduler with :func:`warmup_linear_factor` for every parameter group."""
    return LambdaLR(
        optimizer, lambda step: warmup_linear_factor(step, warmup_steps, total_steps, final_factor, decay_steps)
    )
