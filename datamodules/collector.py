"""Acting: a policy steps environments, and what they deliver goes to the replay and, episode by episode, to shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from datamodules.experience import ExperienceError, ExperienceSpec, Policy
from datamodules.replay_memory import Layout, Replay

Rows = dict[str, np.ndarray]


class SideBySide(Protocol):
    """Environments stepped together in NEXT_STEP order, one of which may die without the others noticing.

    ``step`` answers as a Gymnasium vector environment does, and ``info["died"]`` tells of each environment why its
    observation is the first after a death ("" normally). ``restore`` takes snapshots and what was seen there, and answers
    None for each environment that sees the same again; one that does not begins an episode, and answers what it sees.
    ``render`` answers a picture (H,W,3) of each environment, or None.
    """

    num_envs: int
    deaths: int
    experience: ExperienceSpec

    def reset(self) -> tuple[Rows, dict[str, Any]]: ...

    def step(self, actions: np.ndarray) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]: ...

    def snapshot(self) -> list[dict[str, Any]]: ...

    def restore(self, snapshots: Sequence[dict[str, Any]], seen: Sequence[Rows]) -> list[Rows | None]: ...

    def render(self) -> Sequence[np.ndarray | None]: ...

    def close(self) -> None: ...


def row_layout(spec: ExperienceSpec) -> Layout:
    """Key -> shape and dtype of a row in the data contract, with ``state`` where there are factors."""
    layout: Layout = {
        key: (shape, np.dtype(np.uint8 if len(shape) == 3 else np.float32)) for key, shape in spec.observations.items()
    }
    layout |= {"action": (spec.action.shape, spec.action.dtype), "reward": ((), np.dtype(np.float32))}
    layout |= {key: ((), np.dtype(bool)) for key in ("is_first", "is_last", "is_terminal")}
    if spec.factors:
        layout["state"] = ((len(spec.factors),), np.dtype(np.float32))
    return layout


def check_delivered(
    spec: ExperienceSpec, keys: Sequence[str], observation: Rows, reward: np.ndarray, step: int
) -> None:
    """Refuse what no agent can act or learn on.

    Raises:
        ExperienceError: a key is missing, or a reward or a number that is observed is not finite; says where.
    """
    if missing := [key for key in keys if key not in observation]:
        raise ExperienceError(f"the environment delivers no '{missing[0]}' but {', '.join(observation)}")
    for name, value in (("reward", reward), *((key, observation[key]) for key in spec.vectors)):
        if not np.isfinite(value).all():
            i = int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
            raise ExperienceError(f"environment {i} delivers a '{name}' that is not finite at step {step}")


class Collector:
    """Steps environments one by one, all together.

    Args:
        env: the environments.
        replay: takes every row, with the policy's extras as latents; its layout is :func:`row_layout`.
        keep_episode: called with the rows of each episode that is over; one cut off by a death is closed like a time
            limit, and one whose beginning the replay has dropped is lost to it.
    """

    def __init__(self, env: SideBySide, replay: Replay, keep_episode: Callable[[Rows], None]) -> None:
        self.env, self.spec, self.replay, self.keep_episode = env, env.experience, replay, keep_episode
        self.keys = [*self.spec.observations, *(["state"] if self.spec.factors else [])]
        n = env.num_envs
        self.env_steps = self.episodes = self.lost_episodes = 0
        self.returns: list[tuple[float, int]] = []  # return and steps of episodes that ended since someone looked
        self.memory: Any = None  # the policy's
        self.observation: Rows | None = None  # of the row to come, as are the next four
        self.reward, self.over, self.terminated = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        self.is_first = np.ones(n, bool)
        self.begins = np.zeros(n, np.int64)  # row at which the open episode of each stream begins
        self.sums = np.zeros(n)  # of the rewards of the open episodes

    def step(self, policy: Policy) -> None:
        """One row of every environment.

        Raises:
            ExperienceError: an environment breaks the contract, for example by a reward that is not finite.
        """
        n = self.env.num_envs
        if self.observation is None:
            self.observation, _ = self.env.reset()
            self.memory = policy.initial_state(n)
        check_delivered(self.spec, self.keys, self.observation, self.reward, self.env_steps)
        action, self.memory, extras = policy.act(self.observation, self.is_first, self.memory)
        for i in range(n):
            row = {key: self.observation[key][i] for key in self.keys} | {
                "action": np.zeros_like(action[i]) if self.over[i] else action[i],
                "reward": self.reward[i],
                "is_first": self.is_first[i],
                "is_last": self.over[i],
                "is_terminal": self.terminated[i],
            }
            self.replay.add(i, row, {key: value[i] for key, value in extras.items()})
            self.sums[i] += self.reward[i]
            if self.over[i]:
                self._close(i)
        self.env_steps += n
        self.observation, self.reward, self.terminated, truncated, info = self.env.step(action)
        self.is_first, self.over = self.over.copy(), self.terminated | truncated
        for i, cause in enumerate(info["died"]):
            if cause:
                self._abandon(i)

    def _abandon(self, i: int) -> None:
        """The environment is no longer where its newest row was, which so becomes the last of its episode."""
        self.is_first[i], self.over[i], self.terminated[i], self.reward[i] = True, False, False, 0
        if self.begins[i] == self.replay.streams[i].count:
            return  # it died while beginning an episode: nothing is open
        self.replay.change_last(i, {"is_last": True, "action": np.zeros(self.spec.action.shape)})
        self._close(i)

    def _close(self, i: int) -> None:
        begin, end = int(self.begins[i]), self.replay.streams[i].count
        self.returns.append((float(self.sums[i]), end - begin - 1))  # the first row is no step
        self.episodes += 1
        self.begins[i], self.sums[i] = end, 0
        episode = self.replay.rows(i, begin, end)
        if episode is None:
            self.lost_episodes += 1
        else:
            self.keep_episode(episode)

    # ---- stopping and going on ---------------------------------------------------------------------------------

    ARRAYS = ("reward", "over", "terminated", "is_first", "begins", "sums")
    COUNTS = ("env_steps", "episodes", "lost_episodes")

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on beside replay and policy, in plain types and arrays."""
        return {
            **{name: getattr(self, name).copy() for name in self.ARRAYS},
            **{name: getattr(self, name) for name in self.COUNTS},
            "returns": [list(pair) for pair in self.returns],
            "deaths": self.env.deaths,
            "observation": self.observation,
            "memory": self.memory,
            "envs": self.env.snapshot(),
        }

    def load(self, state: Mapping[str, Any]) -> int:
        """Go on from a :meth:`state`; the replay has been loaded.

        Returns:
            How many environments could not go back to where they were: their episodes are closed like those cut off by
            a death, and they begin others.
        """
        for name in (*self.ARRAYS, *self.COUNTS, "observation", "memory"):
            setattr(self, name, state[name])
        self.returns = [(total, length) for total, length in state["returns"]]
        self.env.deaths = state.get("deaths", 0)
        if self.observation is None:
            return 0
        seen = [{key: value[i] for key, value in self.observation.items()} for i in range(self.env.num_envs)]
        begun = self.env.restore(state["envs"], seen)
        for i, first in enumerate(begun):
            if first is not None:
                self._abandon(i)
                for key in first:
                    self.observation[key][i] = first[key]
        return sum(first is not None for first in begun)
