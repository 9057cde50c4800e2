"""The target network: a frozen moving average of the encoder, and the schedule by which it moves."""

from __future__ import annotations

import copy

from torch import nn


def momentum(step: int, total: int, start: float, end: float = 1.0) -> float:
    """m_i = start + i (end - start) / total, linear per optimizer step (I-JEPA, train.py; section 3 of the paper).

    Args:
        step: i, updates made before this one: 0 at the first.
        total: updates of the whole run; the last one has i = total - 1. Beyond it the value stays at ``end``.
        start: momentum of the first update (I-JEPA .996, V-JEPA .998, V-JEPA 2 a constant .99925).
        end: momentum that is approached.
    """
    return start + (end - start) * min(step, total) / total


def frozen_copy(online: nn.Module) -> nn.Module:
    """A copy that starts equal, in which nothing wants a gradient."""
    return copy.deepcopy(online).requires_grad_(False)
