"""Which part of Genie learns when, and at what rate."""

from __future__ import annotations

from dataclasses import dataclass

from lit_wm.optim.schedules import warmup_constant_factor, warmup_cosine_factor, warmup_linear_factor

PARTS = ("tokenizer", "lam", "dynamics")
ORDERS = ("staged", "separate", "joint", "tokenizer", "world", "latent_action", "dynamics")
DECAYS = ("constant", "cosine", "linear")


def turns(order: str, tokenizer_steps: int, lam_steps: int) -> dict[str, tuple[int, int | None]]:
    """Part -> the update with which it begins to learn, and that before which it stops (None: with the fit). Parts that do not
    learn are left out. This is the whole difference between the paper's order, the article's and the others."""
    if order == "joint":
        return dict.fromkeys(PARTS, (0, None))
    if order == "world":
        return dict.fromkeys(PARTS[1:], (0, None))
    if order == "staged":
        return {"tokenizer": (0, tokenizer_steps), **dict.fromkeys(PARTS[1:], (tokenizer_steps, None))}
    if order == "separate":
        both = tokenizer_steps + lam_steps
        return {"tokenizer": (0, tokenizer_steps), "lam": (tokenizer_steps, both), "dynamics": (both, None)}
    return {"lam" if order == "latent_action" else order: (0, None)}


def trained_parts(of_parts: dict[str, tuple[int, int | None]], step: int) -> tuple[str, ...]:
    """Which parts learn at update ``step``."""
    return tuple(part for part, (begin, end) in of_parts.items() if begin <= step and (end is None or step < end))


def needed_parts(order: str, lam_input: str) -> tuple[str, ...]:
    """Parts that an earlier run must have trained, and whose checkpoints an order therefore needs."""
    needed = {"world": ("tokenizer",), "dynamics": ("tokenizer", "lam")}
    if lam_input == "tokens":  # made by a tokenizer that does not learn in this run
        needed["latent_action"] = ("tokenizer",)
    return needed.get(order, ())


@dataclass(frozen=True)
class OptimizerSettings:
    """How one part learns.

    Args:
        lr: the highest learning rate.
        warmup_steps: updates of linear rise, counted from the part's own first update.
        decay: ``constant``, ``cosine`` over the rest, or ``linear`` over the last ``decay_share`` of the rest.
        final_factor: what is left of ``lr`` at the end.
        decay_share: see ``decay``.
    """

    lr: float = 3e-5
    warmup_steps: int = 5000
    decay: str = "cosine"
    final_factor: float = 0.1
    decay_share: float = 0.4

    def factor(self, step: int, total: int) -> float:
        """Factor of ``lr`` at this part's update ``step`` of ``total``; 0 before its first."""
        if step < 0:
            return 0.0
        if self.decay == "constant":
            return warmup_constant_factor(step, self.warmup_steps)
        if self.decay == "cosine":
            return warmup_cosine_factor(step, self.warmup_steps, total, self.final_factor)
        falling = int(self.decay_share * total)
        return warmup_linear_factor(step, self.warmup_steps, total, self.final_factor, falling)
