"""Acting: a policy steps environments, and what they deliver goes to the replay and, episode by episode, to shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from datamodules.envs.envpool_vector import EnvPoolVectorEnv
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ExperienceError, ExperienceSpec, Policy
from datamodules.replay import Replay

Rows = dict[str, np.ndarray]
Row = dict[str, Any]


class Collector:
    """Steps environments one by one, all together.

    Args:
        env: the environments.
        spec: what they deliver.
        replay: takes every row, with the policy's extras as latents.
        keep_episode: called with the rows of each episode that is over; one cut off by a death is closed like a time limit.
    """

    def __init__(
        self,
        env: SturdyVectorEnv | EnvPoolVectorEnv,
        spec: ExperienceSpec,
        replay: Replay,
        keep_episode: Callable[[Rows], None],
    ) -> None:
        self.env, self.spec, self.replay, self.keep_episode = env, spec, replay, keep_episode
        self.keys = [*spec.observations, *(["state"] if spec.factors else [])]
        self.env_steps = 0
        self.returns: list[tuple[float, int]] = []  # return and length of episodes that ended since someone looked
        self.memory: Any = None
        n = env.num_envs
        self._open: list[list[Row]] = [[] for _ in range(n)]
        self.observation: Mapping[str, np.ndarray] | None = None

    def step(self, policy: Policy) -> None:
        """One row of every environment.

        Raises:
            ExperienceError: an environment breaks the contract, for example by a reward that is not finite.
        """
        n = self.env.num_envs
        if self.observation is None:
            self.observation, _ = self.env.reset()
            self.reward, self.over, self.terminated = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
            self.is_first, self.memory = ~self.over, policy.initial_state(n)
        self._check()
        action, self.memory, extras = policy.act(self.observation, self.is_first, self.memory)
        for i in range(n):
            row = {key: np.array(self.observation[key][i]) for key in self.keys} | {
                "action": np.zeros_like(action[i]) if self.over[i] else action[i],
                "reward": np.float32(self.reward[i]),
                "is_first": self.is_first[i],
                "is_last": self.over[i],
                "is_terminal": self.terminated[i],
            }
            self.replay.add(i, row, {key: value[i] for key, value in extras.items()})
            self._open[i].append(row)
            if self.over[i]:
                self._close(i)
        self.env_steps += n
        self.observation, self.reward, self.terminated, truncated, info = self.env.step(action)
        self.is_first, self.over = self.over.copy(), self.terminated | truncated
        for i, cause in enumerate(info["died"]):
            if cause:
                self._abandon(i)

    def _check(self) -> None:
        if missing := [key for key in self.keys if key not in self.observation]:
            raise ExperienceError(f"the environment delivers no '{missing[0]}' but {', '.join(self.observation)}")
        for name, value in (("reward", self.reward), *((key, self.observation[key]) for key in self.spec.vectors)):
            if not np.isfinite(value).all():
                i = int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
                raise ExperienceError(
                    f"environment {i} delivers a '{name}' that is not finite at step {self.env_steps}"
                )

    def _abandon(self, i: int) -> None:
        """The environment died after its newest row, which so becomes the last of its episode."""
        self.is_first[i] = True
        if not self._open[i]:
            return  # it died while beginning an episode: nothing is open
        ending = {"is_last": True, "action": np.zeros_like(self._open[i][-1]["action"])}
        self.replay.change_last(i, ending)
        self._open[i][-1] |= ending
        self._close(i)

    def _close(self, i: int) -> None:
        rows, self._open[i] = self._open[i], []
        dtypes = {"action": self.spec.action.dtype, "reward": np.float32}
        episode = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        episode |= {key: episode[key].astype(dtype) for key, dtype in dtypes.items()}
        self.returns.append((float(episode["reward"].sum()), len(rows)))
        self.keep_episode(episode)
