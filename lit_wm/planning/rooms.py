"""The rooms of the sprites world as a test of planning: a goal given as a picture, behind a wall with one door.

Beside a model's planner stand its floor and its ceiling: random play and the straight line, and the same planner in the true world.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.envs.sprites_field import DIRECTIONS
from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.contract import Batch, State
from lit_wm.evaluation.statistics import wilson

Act = Callable[
    [Batch, list[Any]], np.ndarray
]  # what was seen and done so far, and the environments -> an action for each


@dataclass(frozen=True)
class Outcome:
    """How a number of episodes ended.

    Attributes:
        reached: (n,) bool.
        steps: (n,) of each episode.
    """

    reached: np.ndarray
    steps: np.ndarray

    def rate(self) -> tuple[float, float, float]:
        """Share of successes with Wilson's interval."""
        return wilson(int(self.reached.sum()), len(self.reached))


def play(make: Callable[[], Any], seeds: list[int], begin: Callable[[Batch], None] | None, act: Act) -> Outcome:
    """One episode for every seed, all side by side. None is solved at its start: agent and goal are in different rooms.

    Args:
        make: a new environment (:class:`~datamodules.envs.sprites.SpritesEnv` with rooms).
        seeds: of the episodes.
        begin: told the goals, clips of one frame (B,1,...), before the first step; None where nobody asks.
        act: chooses.
    """
    envs = [make() for _ in seeds]
    seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    spec: ExperienceSpec = envs[0].experience
    if begin is not None:
        begin(as_clips(spec, [[env.goal_observation()] for env in envs], [[0]] * len(envs)))
    history, actions = [[x] for x in seen], [[] for _ in seeds]
    reached, steps, over = np.zeros(len(seeds), bool), np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
    while not over.all():
        chosen = act(as_clips(spec, history, [[*a, 0] for a in actions]), envs)
        for i, env in enumerate(envs):
            if over[i]:
                observation = history[i][-1]  # stands still, so that all histories stay equally long
            else:
                observation, _, terminated, truncated, _ = env.step(int(chosen[i]))
                steps[i] += 1
                reached[i], over[i] = terminated, terminated or truncated
            history[i].append(observation)
            actions[i].append(int(chosen[i]))
    return Outcome(reached, steps)


def as_clips(spec: ExperienceSpec, observations: list[list[dict[str, np.ndarray]]], actions: list[list[int]]) -> Batch:
    """Observations and actions of B episodes, equally many, as a batch of the data contract (B,T,...)."""
    frames = torch.from_numpy(np.stack([[x["frames"] for x in episode] for episode in observations]))
    state = torch.from_numpy(np.stack([[x["state"] for x in episode] for episode in observations]))
    first = torch.zeros(frames.shape[:2], dtype=torch.bool)
    first[:, 0] = True
    return {
        "frames": frames.permute(0, 1, 4, 2, 3),
        "state": state,
        "action": torch.tensor(actions),
        "is_first": first,
        "is_last": torch.zeros_like(first),
    }


class TrueWorld:
    """The world itself in place of a model: the ceiling of a planner. Answers as much of the contract as planning asks.

    A state is ``place`` (..., 5): the agent's x and y, the goal's, and the door's height, in pixels.

    Args:
        env: whose geometry holds.
    """

    action_space, codes, labels = "environment", None, ("frames", "actions")

    def __init__(self, env: Any) -> None:
        self.field = env.field
        names = [factor.name for factor in env.experience.factors]
        self.columns = [names.index(name) for name in ("agent_x", "agent_y", "goal_x", "goal_y", "door_y")]
        self.space: ActionSpace = env.experience.action

    def observe(self, batch: Batch) -> State:
        return {"place": batch["state"][..., self.columns]}

    def imagine(
        self, state: State, actions: Tensor, samples: int = 1, temperature: float = 1.0, generator: Any = None
    ) -> State:
        """(B,5) and (B,K,A) one-hot -> (B,1,K,5)."""
        place, found = state["place"].numpy().astype(int), []
        for k in range(actions.shape[1]):
            place = self._moved(place, actions[:, k].argmax(-1).numpy())
            found.append(torch.from_numpy(place.astype(np.float32)))
        return {"place": torch.stack(found, 1).unsqueeze(1)}

    def feature_map(self, state: State) -> None:
        return None

    def features(self, state: State) -> Tensor:
        """(..., 2) where the agent is."""
        return state["place"][..., :2]

    def way_to_goal(self, state: State) -> Tensor:
        """(..., 1): steps that the scripted oracle would still need, which no straight line can tell."""
        flat = state["place"].reshape(-1, 5).numpy().astype(int)
        steps = [self.field.oracle_steps((x, y), (gx, gy), door) for x, y, gx, gy, door in flat.tolist()]
        return torch.tensor(steps, dtype=torch.float32).view(*state["place"].shape[:-1], 1)

    def _moved(self, place_b5: np.ndarray, action_b: np.ndarray) -> np.ndarray:
        """:meth:`Field.move` for all at once, pixel by pixel."""
        field, walk = self.field, self.field.field.shrunk(self.field.half)
        x, y, door = place_b5[:, 0].copy(), place_b5[:, 1].copy(), place_b5[:, 4]
        dx, dy = np.array(DIRECTIONS).T[:, action_b]
        for _ in range(field.stride):
            to_x, to_y = x + dx, y + dy
            free = (walk.left <= to_x) & (to_x <= walk.right) & (walk.top <= to_y) & (to_y <= walk.bottom)
            at_wall = (to_x + field.half >= field.wall_left) & (to_x - field.half <= field.wall_right)
            free &= ~at_wall | (np.abs(to_y - door) <= field.slack)
            x, y = np.where(free, to_x, x), np.where(free, to_y, y)
            dx, dy = np.where(free, dx, 0), np.where(free, dy, 0)
        return np.stack([x, y, place_b5[:, 2], place_b5[:, 3], door], 1)
