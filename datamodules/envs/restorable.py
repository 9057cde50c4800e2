"""Environments that can be taken up again: each episode has a seed of its own, and what was done in it is remembered.

An environment's inner state cannot be saved in general. But an episode of a deterministic environment is its seed and the
actions so far: doing them again leads to the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np


class RestorableEnv(gymnasium.Wrapper):
    """Seeds every episode by (seed, number of the episode) and can go back to where a :meth:`snapshot` was taken.

    Args:
        env: any environment.
        seed: of all its episodes; those of different seeds are unrelated.
    """

    def __init__(self, env: gymnasium.Env, seed: Sequence[int]) -> None:
        super().__init__(env)
        self.seed = seed
        self.episode = -1
        self.actions: list[np.ndarray] = []

    @property
    def experience(self) -> Any:
        """What the environment delivers."""
        return self.env.experience

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; ``seed`` replaces the seed of this and all later episodes."""
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.actions = []
        own = np.random.SeedSequence([*self.seed, self.episode]).generate_state(1)[0]
        return self.env.reset(seed=int(own), options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        return self.env.step(action)

    def snapshot(self) -> dict[str, Any]:
        """Where the environment is: seed, number of the episode, and the actions taken in it."""
        return {"seed": list(self.seed), "episode": self.episode, "actions": np.array(self.actions)}

    def restore(self, snapshot: dict[str, Any]) -> Any:
        """Go back to a snapshot.

        Returns:
            The observation there; it differs from the one that was seen if the environment is not deterministic.
        """
        self.seed, self.episode = snapshot["seed"], snapshot["episode"] - 1
        observation, _ = self.reset()
        for action in snapshot["actions"]:
            observation, *_ = self.step(action)
        return observation
