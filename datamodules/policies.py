"""Who plays while experience is recorded. All answer :class:`datamodules.experience.Policy`.

Every environment has its own random stream, drawn from the policy's seed and the environment's number, so that what is
played in one does not depend on how many others there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.envs.sprites_field import Field
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, Policy

NAMES = ("random", "sticky", "rightward", "scripted", "straight")
RIGHTWARD = 0.5  # share of the draws that go to actions to the right, beside what a uniform draw gives them
Act = tuple[np.ndarray, Any, dict[str, np.ndarray]]


@dataclass
class _Memory:
    """A random stream and the last action for each environment."""

    streams: list[np.random.Generator]
    last: np.ndarray


class StickyPolicy:
    """Repeat the last action with probability ``repeat``, else draw a uniform one: runs of 1 / (1 - repeat) steps.

    Uniform play hardly leaves the place where it began; holding an action for a while covers far more of a world.
    The default holds for four steps on average.

    Args:
        space: the actions; continuous ones are uniform in [-1, 1].
        seed: of the random streams.
        repeat: probability of repeating; 0 is uniform random play.
        favoured: discrete actions to which half of the draws go; empty for none.
    """

    def __init__(self, space: ActionSpace, seed: int, repeat: float = 0.75, favoured: Sequence[int] = ()) -> None:
        self.space, self.seed, self.repeat, self.favoured = space, seed, repeat, favoured

    def initial_state(self, n: int) -> _Memory:
        # The extra word keeps these streams apart from those of environments made with the same seed.
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence([self.seed, 0x504F4C]).spawn(n)]
        return _Memory(streams, np.zeros((n, *self.space.shape), self.space.dtype))

    def act(self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: _Memory) -> Act:
        last = state.last.copy()
        for i, stream in enumerate(state.streams):
            if stream.random() >= self.repeat or is_first[i]:
                last[i] = self._draw(stream)
        return last, _Memory(state.streams, last), {}

    def _draw(self, stream: np.random.Generator) -> np.ndarray | int:
        if self.favoured and stream.random() < RIGHTWARD:
            return stream.choice(self.favoured)
        if self.space.kind == "continuous":
            return stream.uniform(-1, 1, self.space.shape)
        return stream.integers(self.space.sizes if self.space.kind == "multi_discrete" else self.space.sizes[0])


class SpritesPolicy:
    """Walk to the goal of the sprites world, reading ``state``.

    Args:
        spec: of the environment; tells the size and whether there are rooms.
        through_door: walk through the door (the oracle); otherwise along the straight line, wall or not.
    """

    def __init__(self, spec: ExperienceSpec, through_door: bool) -> None:
        self.columns = {factor.name: i for i, factor in enumerate(spec.factors)}
        self.field = Field(spec.observations["frames"][0], rooms="door_y" in self.columns)
        self.through_door = through_door

    def initial_state(self, n: int) -> None:
        return None

    def act(self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: None) -> Act:
        actions = [self._action(truth) for truth in observation["state"]]
        return np.array(actions, np.int64), None, {}

    def _action(self, truth: np.ndarray) -> int:
        at = {name: truth[i] for name, i in self.columns.items()}
        agent = (int(at["agent_x"]), int(at["agent_y"]))
        goal = (int(at["goal_x"]), int(at["goal_y"]))
        if self.through_door:
            return self.field.oracle_action(agent, goal, int(at.get("door_y", 0)))
        return self.field.straight_action(agent, goal)


class PongPolicy:
    """Keep the paddle at the height of the ball, reading ``state``; rest while the ball is out of play.

    Args:
        spec: of the environment.
        margin: do nothing while the ball is within this share of the picture's height; the paddle is a tenth high.
    """

    def __init__(self, spec: ExperienceSpec, margin: float = 0.025) -> None:
        self.columns = {factor.name: i for i, factor in enumerate(spec.factors)}
        self.margin = margin * spec.observations["frames"][0]
        names = spec.action.names
        self.noop, self.up, self.down = names.index("noop"), names.index("right"), names.index("left")

    def initial_state(self, n: int) -> None:
        return None

    def act(self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: None) -> Act:
        truth = observation["state"]
        below = truth[:, self.columns["ball_y"]] - truth[:, self.columns["player_y"]]  # NaN compares false
        actions = np.where(below > self.margin, self.down, np.where(below < -self.margin, self.up, self.noop))
        return actions.astype(np.int64), None, {}


def make_policy(name: str, env_id: str, spec: ExperienceSpec, seed: int) -> Policy:
    """A policy by name.

    Args:
        name: ``random`` (uniform), ``sticky`` (:class:`StickyPolicy`), ``rightward`` (sticky, but half of the draws go to
            the actions whose names begin with "right": in CoinRun uniform play hardly leaves the start), ``scripted`` (reads ``state``: the oracle of the
            sprites world, the ball's follower in Pong), ``straight`` (sprites: to the goal, wall or not).
        env_id: the environment it is for.
        spec: of that environment.
        seed: of its random streams.

    Raises:
        ExperienceError: no such policy for this environment.
    """
    if name == "random":
        return StickyPolicy(spec.action, seed, repeat=0.0)
    if name == "sticky":
        return StickyPolicy(spec.action, seed)
    right = [i for i, action in enumerate(spec.action.names) if action.startswith("right")]
    if name == "rightward" and right:
        return StickyPolicy(spec.action, seed, favoured=right)
    if env_id == "sprites" and name in ("scripted", "straight"):
        return SpritesPolicy(spec, through_door=name == "scripted")
    if env_id == "pong" and name == "scripted":
        return PongPolicy(spec)
    here = {"sprites": ", scripted, straight", "pong": ", scripted"}.get(env_id, "")
    here = ", rightward" * bool(right) + here
    raise ExperienceError(f"there is no policy '{name}' for {env_id}; it has random, sticky{here}")
