"""Planners that draw, judge and refit: CEM, iCEM and MPPI. They differ in how samples are weighed, and in what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_wm.errors import UserError, check_bounds
from lit_wm.planning.proposals import Proposal

Cost = Callable[[Tensor], Tensor]  # (B,N,H,A) action sequences -> (B,N), lower is better


@dataclass
class Plan:
    """What a planner found for B problems.

    Attributes:
        actions_bha: (B,H,A) the sequences to follow.
        cost_b: (B,) cost of each, as imagined; of the last population's best where the planner follows a mean.
        proposal: the law it ended with, to start the next search from.
        history: for every iteration the least cost of each problem, (B,).
    """

    actions_bha: Tensor
    cost_b: Tensor
    proposal: Proposal
    history: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method (Rubinstein 1999), with the improvements of iCEM (Pinneri et al. 2020) as options.

    Args:
        samples: sequences drawn in an iteration (DINO-WM, LeWM 300).
        elites: how many of the best the law is refitted to (30).
        iterations: 30.
        momentum_mean: share of the earlier mean that is kept (V-JEPA 2-AC .25).
        momentum_std: share of the earlier standard deviation (V-JEPA 2-AC .95).
        try_mean: the first sample is the mean itself (stable-worldmodel; iCEM in the last iteration).
        keep: share of the elites that take part in the next iteration too (iCEM .3).
        shrink: the number of samples is divided by this after every iteration, down to twice the elites (iCEM 1.25).
        follow_best: return the best sequence ever judged instead of the law's mean (iCEM).

    Raises:
        UserError: a number that cannot work.
    """

    samples: int = 300
    elites: int = 30
    iterations: int = 30
    momentum_mean: float | Tensor = 0.0
    momentum_std: float | Tensor = 0.0
    try_mean: bool = True
    keep: float = 0.0
    shrink: float = 1.0
    follow_best: bool = False

    def __post_init__(self) -> None:
        numbers = {"samples": self.samples, "elites": self.elites, "iterations": self.iterations, "shrink": self.shrink}
        check_bounds("CEM planner", numbers, {"samples": 2, "elites": 2, "iterations": 1, "shrink": 1})
        if self.elites > self.samples:
            raise UserError(f"elites of the CEM planner is {self.elites}, but it draws {self.samples} samples")
        if not 0 <= self.keep <= 1:
            raise UserError(f"keep of the CEM planner is {self.keep}, it must be in [0, 1]")

    @torch.no_grad()
    def plan(self, cost: Cost, proposal: Proposal, generator: torch.Generator | None = None) -> Plan:
        """Search from a law.

        Args:
            cost: what is to be made small.
            proposal: where to begin: broad, or that of the plan before, moved on by a step (a warm start).
            generator: source of randomness.
        """
        kept, history, best, best_cost, samples = None, [], proposal.best(), None, self.samples
        for _ in range(self.iterations):
            drawn = proposal.draw(samples, generator)
            if self.try_mean:
                drawn[:, 0] = proposal.best()
            candidates = drawn if kept is None else torch.cat([drawn, kept], 1)
            cost_bn = judged(cost, candidates)
            elite_bm = cost_bn.topk(self.elites, largest=False).indices
            elites = take_sequences(candidates, elite_bm)
            proposal = proposal.refitted(elites, torch.full_like(elite_bm, 1 / self.elites, dtype=cost_bn.dtype)).mixed(
                proposal, self.momentum_mean, self.momentum_std
            )
            least = cost_bn.gather(1, elite_bm[:, :1])[:, 0]
            history.append(least)
            better = torch.ones_like(least, dtype=torch.bool) if best_cost is None else least < best_cost
            best_cost = least if best_cost is None else torch.where(better, least, best_cost)
            best = torch.where(better[:, None, None], elites[:, 0], best)
            kept = elites[:, : round(self.keep * self.elites)] if self.keep else None
            samples = max(int(samples / self.shrink), 2 * self.elites if self.shrink > 1 else samples)
        actions = best if self.follow_best else proposal.best()
        return Plan(actions, best_cost if self.follow_best else history[-1], proposal, history)


def icem(samples: int = 300, elites: int = 30, iterations: int = 10) -> CEM:
    """iCEM's options (Pinneri et al. 2020); give it a proposal with ``colour=2``."""
    return CEM(
        samples, elites, iterations, momentum_mean=0.1, momentum_std=0.1, keep=0.3, shrink=1.25, follow_best=True
    )


@dataclass(frozen=True)
class MPPI:
    """Model predictive path integral control (Williams et al. 2017): all samples count, the cheaper the more.

    The weights are softmax(-cost / temperature). Give a Gaussian proposal with ``fixed_std``.

    Args:
        samples: sequences drawn in an iteration (PLDM 2,000).
        temperature: lambda, in units of the cost (PLDM .005).
        iterations: of drawing and refitting; 1 is the method as published.

    Raises:
        UserError: a number that cannot work.
    """

    samples: int = 2000
    temperature: float = 0.005
    iterations: int = 1

    def __post_init__(self) -> None:
        numbers = {"samples": self.samples, "iterations": self.iterations, "temperature": self.temperature}
        check_bounds("MPPI planner", numbers, {"samples": 1, "iterations": 1}, positive=("temperature",))

    @torch.no_grad()
    def plan(self, cost: Cost, proposal: Proposal, generator: torch.Generator | None = None) -> Plan:
        """As :meth:`CEM.plan`."""
        history = []
        for _ in range(self.iterations):
            candidates = proposal.draw(self.samples, generator)
            cost_bn = judged(cost, candidates)
            proposal = proposal.refitted(candidates, (-cost_bn / self.temperature).softmax(1))
            history.append(cost_bn.min(1).values)
        return Plan(proposal.best(), history[-1], proposal, history)


def judged(cost: Cost, candidates_bnha: Tensor) -> Tensor:
    """(B,N) costs, checked.

    Raises:
        UserError: a cost that is no number: the planner would follow anything.
    """
    cost_bn = cost(candidates_bnha)
    if not torch.isfinite(cost_bn).all():
        raise UserError("the planner's cost is not finite: the model's imagination leaves what it can represent")
    return cost_bn


def take_sequences(actions_bnha: Tensor, index_bm: Tensor) -> Tensor:
    """(B,N,H,A), (B,M) -> (B,M,H,A)."""
    index = index_bm[..., None, None].expand(-1, -1, *actions_bnha.shape[2:])
    return actions_bnha.gather(1, index)
