"""GradientPlanner: the actions follow the gradient of their cost through the world model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_wm.errors import check_bounds
from lit_wm.planning.proposals import Categorical, Gaussian, Proposal
from lit_wm.planning.sampling import Cost, Plan, judged


@dataclass(frozen=True)
class GradientPlanner:
    """Adam on several action sequences at once; the best that was met is returned (DINO-WM's and swm's gradient solvers).

    Discrete actions are relaxed to softmax laws while they are sought, and every step's judgement is of the likeliest classes.

    Args:
        samples: sequences sought side by side from different beginnings.
        iterations: steps of Adam.
        lr: its learning rate, in units of the action (continuous) or of the logits.

    Raises:
        UserError: a number that cannot work.
    """

    samples: int = 8
    iterations: int = 50
    lr: float = 0.1

    def __post_init__(self) -> None:
        numbers = {"samples": self.samples, "iterations": self.iterations, "lr": self.lr}
        check_bounds("gradient planner", numbers, {"samples": 1, "iterations": 1}, positive=("lr",))

    @torch.enable_grad()
    def plan(self, cost: Cost, proposal: Proposal, generator: torch.Generator | None = None) -> Plan:
        """As :meth:`~lit_wm.planning.sampling.CEM.plan`; the cost must be differentiable in the actions."""
        first_bnha = proposal.draw(self.samples, generator)
        first_bnha[:, 0] = proposal.best()
        x = (3 * first_bnha if isinstance(proposal, Categorical) else first_bnha).clone().requires_grad_()
        optimizer = torch.optim.Adam([x], lr=self.lr)
        best, best_cost, history = first_bnha[:, 0], None, []
        for i in range(self.iterations + 1):  # the last round judges what the last step found
            with torch.no_grad():
                best, best_cost = _better(best, best_cost, executable(x, proposal), cost)
            history.append(best_cost)
            if i < self.iterations:
                optimizer.zero_grad()
                judged(cost, relaxed(x, proposal)).sum().backward()
                optimizer.step()
        found = replace(proposal, **{"law_bhk" if isinstance(proposal, Categorical) else "mean_bha": best})
        return Plan(best, best_cost, found, history)


def relaxed(x_bnha: Tensor, proposal: Proposal) -> Tensor:
    """What the gradient flows through: laws over classes, or actions within the bounds."""
    if isinstance(proposal, Categorical):
        return x_bnha.softmax(-1)
    return proposal.within(x_bnha)


def executable(x_bnha: Tensor, proposal: Proposal) -> Tensor:
    """What can be done: one class, or actions within the bounds."""
    if isinstance(proposal, Gaussian):
        return relaxed(x_bnha, proposal)
    return torch.nn.functional.one_hot(x_bnha.argmax(-1), x_bnha.shape[-1]).to(x_bnha)


def _better(best_bha: Tensor, best_cost_b: Tensor | None, x_bnha: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
    """The best of what was known and of N candidates."""
    least = judged(cost, x_bnha).min(1)
    found = x_bnha[torch.arange(len(x_bnha)), least.indices]
    if best_cost_b is None:
        return found, least.values
    better = least.values < best_cost_b
    return torch.where(better[:, None, None], found, best_bha), torch.where(better, least.values, best_cost_b)
