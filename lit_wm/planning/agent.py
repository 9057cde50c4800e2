"""PlanningAgent: model predictive control. It plans from what it sees, does the first actions, looks, and plans again."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from datamodules.experience import ActionSpace
from lit_wm.contract import Batch, WorldModelContract, at
from lit_wm.errors import UserError, check_bounds, check_shares
from lit_wm.planning.costs import Embedding, ImaginedDistance, latent
from lit_wm.planning.proposals import Categorical, Gaussian, Proposal
from lit_wm.planning.sampling import Plan


class Planner(Protocol):
    """CEM, MPPI or the gradient planner."""

    def plan(self, cost: Any, proposal: Proposal, generator: torch.Generator | None = None) -> Plan: ...


@dataclass(frozen=True)
class Horizon:
    """How far a plan looks, and how much of it is done.

    Args:
        blocks: decisions of a plan (DINO-WM, LeWM 5).
        hold: steps for which each decision is held.
        execute: steps that are done before the next plan (LeWM: a block; 1 plans at every step).
        along: see :class:`~lit_wm.planning.costs.ImaginedDistance`.
        std: of the first Gaussian law, for continuous actions within [-1, 1].
        colour: of its noise (iCEM 2).
        stick: of the law over discrete actions, see :class:`~lit_wm.planning.proposals.Categorical`.

    Raises:
        UserError: a number that cannot work.
    """

    blocks: int = 5
    hold: int = 1
    execute: int = 1
    along: float = 0.0
    std: float = 0.5
    colour: float = 0.0
    stick: float = 0.0

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("blocks", "hold", "execute", "along", "std")}
        check_bounds("planner", numbers, {"blocks": 1, "hold": 1, "execute": 1, "along": 0}, positive=("std",))
        if self.execute > self.blocks * self.hold:
            raise UserError(f"execute of the planner is {self.execute}, but a plan has {self.blocks * self.hold} steps")
        if self.along > 1:
            raise UserError(f"along of the planner is {self.along}, it must be at most 1")
        check_shares("planner", {"stick": self.stick})


class PlanningAgent:
    """Plans for B problems at once in a world model that takes the environment's actions.

    Args:
        model: in evaluation mode.
        planner: how action sequences are sought.
        space: of the environment's actions; discrete or continuous.
        horizon: how far to look.
        embed: states to vectors whose distance to the goal counts; None: :func:`~lit_wm.planning.costs.latent`.
        context: most frames of the past that the model is shown.
        seed: of what the planner draws.

    Raises:
        UserError: a model that cannot imagine what the environment's actions do, or actions that cannot be planned.
    """

    def __init__(
        self,
        model: WorldModelContract,
        planner: Planner,
        space: ActionSpace,
        horizon: Horizon,
        embed: Embedding | None = None,
        context: int = 4,
        seed: int = 0,
    ) -> None:
        if model.action_space != "environment":
            raise UserError(
                "planning needs a model that imagines what the environment's actions do; this one takes none or its own codes"
            )
        if space.kind == "multi_discrete":
            raise UserError("planning takes discrete or continuous actions, not several classes at once")
        self.model, self.planner, self.space, self.horizon, self.context = model, planner, space, horizon, context
        self.embed = embed or latent(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.seconds: list[float] = []  # wall time of each call of the planner
        self._proposal: Proposal | None = None
        self._queue: list[Tensor] = []

    @torch.no_grad()
    def begin(self, goal: Batch) -> None:
        """Take up B new problems.

        Args:
            goal: the goals as clips of one frame, (B,1,...) in the data contract.
        """
        self.goal_bd = self.embed(at(self.model.observe(goal), 0))
        self._proposal, self._queue = None, []

    @torch.no_grad()
    def act(self, history: Batch) -> Tensor:
        """The next action of each problem, as vectors (B,A).

        Args:
            history: the frames so far and the actions after them, (B,T,...); the last action is not read.
        """
        if not self._queue:
            seen = {key: x[:, -self.context :] for key, x in history.items()}
            seen["is_first"] = seen["is_first"].clone()
            seen["is_first"][:, 0] = True  # the past before the context is not there
            state = at(self.model.observe(seen), -1)
            h = self.horizon
            cost = ImaginedDistance(self.model, state, self.goal_bd, self.embed, h.hold, h.along)
            begin = time.perf_counter()
            plan = self.planner.plan(cost, self._first_law(len(self.goal_bd)), self.generator)
            self.seconds.append(time.perf_counter() - begin)
            steps_bsa = plan.actions_bha.repeat_interleave(h.hold, 1)
            self._queue = list(steps_bsa[:, : h.execute].unbind(1))
            self._proposal = self._moved_on(plan)
        return self._queue.pop(0)

    def _first_law(self, b: int) -> Proposal:
        """A broad law, around what is left of the plan before (a warm start)."""
        h, a = self.horizon, self.space.width
        if self._proposal is not None:
            return self._proposal
        if self.space.kind == "continuous":
            zeros = torch.zeros(b, h.blocks, a)
            return Gaussian(zeros, torch.full_like(zeros, h.std), -1.0, 1.0, h.colour)
        return Categorical(torch.full((b, h.blocks, a), 1 / a), stick=h.stick)

    def _moved_on(self, plan: Plan) -> Proposal:
        """What was planned for later, moved forward by the blocks that are done; where nothing was planned, anything."""
        done, fresh = self.horizon.execute // self.horizon.hold, self._fresh(plan)
        if isinstance(plan.proposal, Categorical):
            law = torch.cat([plan.proposal.law_bhk[:, done:], fresh.law_bhk[:, :done]], 1)
            return replace(plan.proposal, law_bhk=0.5 * law + 0.5 * fresh.law_bhk)
        mean = torch.cat([plan.proposal.mean_bha[:, done:], fresh.mean_bha[:, :done]], 1)
        return replace(plan.proposal, mean_bha=mean, std_bha=fresh.std_bha)

    def _fresh(self, plan: Plan) -> Proposal:
        self._proposal = None
        return self._first_law(len(plan.actions_bha))
