"""PlayLoader: an agent plays whole episodes, to be judged by their returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from datamodules.collector import SideBySide, check_delivered
from datamodules.experience import Policy


class PlayLoader:
    """A batch per episode that ended: ``episode_return`` (1,), ``episode_length`` (1,) in steps and, of the first ones, their
    pictures, ``frames`` (1,T,C,H,W) uint8: those it sees, or else those it draws (``render_mode: rgb_array``), if any.

    Each environment plays the same number of episodes: whoever takes the first n that end prefers short ones. Each time they are
    new environments, so that the same agent plays the same episodes again.

    Args:
        environments: makes ``num_envs`` of them.
        num_envs: environments side by side.
        agent: acts as it does in training.
        episodes: at least so many in all.
        videos: keep the pictures of so many, which environment 0 plays first.
    """

    def __init__(
        self, environments: Callable[[], SideBySide], num_envs: int, agent: Policy, episodes: int, videos: int
    ) -> None:
        self.environments, self.num_envs, self.agent, self.videos = environments, num_envs, agent, videos
        self.each = -(-episodes // num_envs)
        self._env: SideBySide | None = None

    def close(self) -> None:
        """End the environments."""
        if self._env is not None:
            self._env.close()
        self._env = None

    def __len__(self) -> int:
        return self.each * self.num_envs

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.close()
        self._env, last = self.environments(), None
        try:
            for episode in self._play(self._env):
                if last is not None:
                    yield last
                last = episode
        finally:
            self.close()
        if last is not None:  # whoever counts need not come back for the end
            yield last

    def _play(self, env: SideBySide) -> Iterator[dict[str, Tensor]]:
        n, spec = env.num_envs, env.experience
        shown = next((key for key in ("frames", *spec.pictures) if key in spec.pictures), None)
        played, total, length = np.zeros(n, int), np.zeros(n), np.zeros(n, int)
        frames: list[np.ndarray] = []
        observation, _ = env.reset()
        memory, is_first, over, reward = self.agent.initial_state(n), np.ones(n, bool), np.zeros(n, bool), np.zeros(n)
        while True:
            total, length = total + reward, length + ~is_first
            check_delivered(spec, tuple(spec.observations), observation, reward, int(length.max()))
            if played[0] < self.videos:
                picture = observation[shown][0] if shown else env.render()[0]
                frames += [] if picture is None else [picture]
            for i in np.flatnonzero(over & (played < self.each)):
                episode = {"episode_return": torch.tensor([total[i]]), "episode_length": torch.tensor([length[i]])}
                if i == 0 and frames:
                    episode["frames"] = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).unsqueeze(0)
                    frames = []
                played[i] += 1
                yield episode
            if (played == self.each).all():
                return
            total, length = np.where(over, 0, total), np.where(over, 0, length)
            action, memory, _ = self.agent.act(observation, is_first, memory)
            is_first = over
            observation, reward, terminated, truncated, info = env.step(action)
            over = terminated | truncated
            for i in np.flatnonzero([bool(cause) for cause in info["died"]]):  # that episode does not count
                is_first[i], total[i], length[i] = True, 0, 0
                frames = [] if i == 0 else frames
