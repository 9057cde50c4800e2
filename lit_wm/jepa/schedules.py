"""The schedules of I-JEPA and V-JEPA, as pure functions of the update (facebookresearch/ijepa, ``utils/schedulers.py`` and ``train.py``).

``call`` counts from 1: the value with which that update is made. Cosines stay at their end beyond ``total``.
"""

from __future__ import annotations

import math


def learning_rate(call: int, warmup: int, total: float, start: float, peak: float, final: float) -> float:
    """Linear from ``start`` to ``peak`` over ``warmup`` updates, then half a cosine to ``final`` at ``total``."""
    if call < warmup:
        return start + call / warmup * (peak - start)
    progress = min(1.0, (call - warmup) / max(1, int(total) - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def weight_decay(call: int, total: float, start: float, final: float) -> float:
    """Half a cosine from ``start`` to ``final`` at ``total``."""
    progress = min(1.0, call / int(total))
    return final + (start - final) * 0.5 * (1 + math.cos(math.pi * progress))


def momentum(update: int, total: float, start: float, end: float = 1.0) -> float:
    """m_i = start + i (end - start) / total, linear per optimizer step (section 3 of the paper).

    Args:
        update: i, updates made before this one: 0 at the first.
        total: updates of the whole run; the last one has i = total - 1. Beyond it the value stays at ``end``.
        start: momentum of the first update (I-JEPA .996, V-JEPA .998, V-JEPA 2 a constant .99925).
        end: momentum that is approached.
    """
    return start + (end - start) * min(update, total) / total
