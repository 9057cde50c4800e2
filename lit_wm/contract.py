"""The contract that every route answers. Evaluation, planning and play are written against this alone.

A *state* is a dict of tensors whose leading axes are batch and time (or whatever axes a caller left). Its keys are
the route's own business; callers only index, stack and pass states back. This file knows nothing of Lightning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

State = dict[str, Tensor]
Batch = Mapping[str, Tensor]


@runtime_checkable
class WorldModelContract(Protocol):
    """What a world model can be asked. ``None`` means "this route has no such thing", never "not done yet".

    Attributes:
        action_space: what :meth:`imagine` takes: ``environment`` actions as vectors, its own ``codes``, or ``none``.
        codes: how many codes there are to choose from, 0 to codes - 1; None where they are vectors, and where ``action_space``
            is not ``codes``.
        labels: what training consumes, of ``frames``, ``actions``, ``rewards``: printed as the route's privilege.
    """

    action_space: str
    codes: int | None
    labels: tuple[str, ...]

    def observe(self, batch: Batch) -> State:
        """Filter a clip: the state after each frame.

        Args:
            batch: a clip of the data contract, (B,T,...).

        Returns:
            States with leading axes (B,T). The state at t depends on nothing later than frame t.
        """

    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State:
        """Roll forward open loop, never seeing another frame.

        Args:
            state: leading axis (B,), usually ``at(observe(batch), t)``.
            actions: ``action_space == "environment"``: (B,K,A) float vectors, ``actions[:, 0]`` being the action taken
                after the frame of ``state``; ``"codes"``: what :meth:`infer_actions` gives, (B,K) int64 or (B,K,D) float
                vectors; ``"none"``: (B,K) whose values are ignored.
            samples: S independent futures; a deterministic model returns S equal ones.
            temperature: 0 takes modes, 1 samples as trained.
            generator: the source of randomness.

        Returns:
            States with leading axes (B,S,K): the states after each action.
        """

    def features(self, state: State) -> Tensor:
        """(..., D) one vector per state, for probes."""

    def feature_map(self, state: State) -> Tensor | None:
        """(..., N, D) one vector per place in the picture."""

    def targets(self, batch: Batch) -> Tensor:
        """(B,T,D) in the space of :meth:`features`: what a perfect prediction of each frame's features would equal."""

    def decode(self, state: State) -> Tensor | None:
        """(..., C,H,W) frames in [0, 1] by the model's own decoder."""

    def infer_actions(self, batch: Batch) -> Tensor | None:
        """What happened between frames t and t+1 (entry t), in the model's own words, or None when it has none.

        (B,T-1) int64 codes, of which any that it gives may be given to :meth:`imagine`; or (B,T-1,D) float vectors of a
        model whose codes are continuous: the mean of each, not a sample. A model gives one kind, always.
        """

    def log_prob(self, state: State, batch: Batch) -> Tensor | None:
        """(B,T-1) nats: log-density of frame t+1 given ``state`` at t and the action between, under the model's own law."""


def map_state(state: State, function: Callable[[Tensor], Tensor]) -> State:
    """Apply a function to every tensor of a state."""
    return {key: function(value) for key, value in state.items()}


def at(state: State, t: int) -> State:
    """The state at time ``t`` of states with leading axes (B,T): leading axis (B,)."""
    return map_state(state, lambda x: x[:, t])


def concatenate(states: list[State], dim: int = 0) -> State:
    """Join states along a leading axis."""
    return {key: torch.cat([state[key] for state in states], dim) for key in states[0]}


def repeat_samples(state: State, samples: int) -> State:
    """(B,...) -> (B*samples,...), each entry repeated next to itself: for routes that sample by widening the batch."""
    return map_state(state, lambda x: x.repeat_interleave(samples, 0))
