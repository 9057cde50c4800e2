"""A trained imitation policy at play: it sees the last frames, draws a code, and a real action is drawn for the code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from datamodules.envs import vector_env
from datamodules.experience import Policy
from datamodules.play import PlayLoader
from lit_wm.genie.imitation.policy import ImitationPolicy

Memory = dict[str, Any]
ToActions = Callable[[np.ndarray, np.random.Generator], np.ndarray]
APART = 0x494D4954  # keeps the worlds that policies are judged in apart from those recorded with the same seed


class ImitationAgent:
    """Answers :class:`datamodules.experience.Policy`.

    Args:
        policy: trained, in evaluation mode.
        to_actions: codes (n,) and a generator -> real actions (n,); for the oracle what it was given.
        seed: of all that is drawn.
        temperature: of the policy's law; 0 takes the likeliest.
        random_share: with this probability a step draws its class uniformly instead.
    """

    def __init__(
        self,
        policy: ImitationPolicy,
        to_actions: ToActions,
        seed: int,
        temperature: float = 1.0,
        random_share: float = 0.0,
    ) -> None:
        self.policy, self.to_actions, self.seed = policy, to_actions, seed
        self.temperature, self.random_share = temperature, random_share

    def initial_state(self, n: int) -> Memory:
        """No frames seen yet in any of ``n`` environments."""
        frames, picture = self.policy.settings.frames, self.policy.picture
        return {
            "frames": np.zeros((n, frames, *picture), np.uint8),  # the window, filled from its beginning
            "classes": np.zeros((n, frames), np.int64),  # what was done on seeing each
            "seen": np.zeros(n, int),  # frames of the window that are there
            "generator": np.random.default_rng(self.seed),
        }

    @torch.no_grad()
    def act(
        self, observation: Mapping[str, np.ndarray], is_first: np.ndarray, state: Memory
    ) -> tuple[np.ndarray, Memory, dict[str, np.ndarray]]:
        """One step in every environment. Rows of the window behind the newest frame are not there yet; what stands in them
        does not matter, because the policy is causal."""
        frames, classes, generator = state["frames"].copy(), state["classes"].copy(), state["generator"]
        seen = np.where(is_first, 0, state["seen"])
        full = seen == frames.shape[1]
        frames[full, :-1], classes[full, :-1] = frames[full, 1:], classes[full, 1:]
        each, now = np.arange(len(seen)), np.where(full, seen - 1, seen)
        frames[each, now] = observation["frames"].transpose(0, 3, 1, 2)
        device = self.policy.patch_in.weight.device
        logits_bta = self.policy(torch.from_numpy(frames).to(device), torch.from_numpy(classes).to(device))
        classes[each, now] = self._draw(logits_bta.float().cpu().numpy()[each, now], generator)
        memory = {"frames": frames, "classes": classes, "seen": now + 1, "generator": generator}
        return self.to_actions(classes[each, now], generator), memory, {}

    def _draw(self, logits_ba: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(B,A) logits -> (B,) classes. Adding Gumbel noise and taking the largest draws from the softmax."""
        noise_ba = generator.gumbel(size=logits_ba.shape)
        chosen_b = (logits_ba + self.temperature * noise_ba).argmax(-1)
        random_b = generator.random(len(chosen_b)) < self.random_share
        return np.where(random_b, generator.integers(logits_ba.shape[1], size=len(chosen_b)), chosen_b)


def returns_of(agent: Policy, environment: Mapping[str, Any], episodes: int, seed: int) -> np.ndarray:
    """Returns (episodes,) of whole episodes, one in each of as many environments.

    Args:
        agent: who acts.
        environment: ``id`` and options, as the index of a recording holds them.
        episodes: how many.
        seed: of the worlds; the same seed gives every agent the same ones, none of which is recorded with that seed.

    Raises:
        ExperienceError: the environment cannot be made.
    """
    options = dict(environment)
    words = np.random.SeedSequence([seed, APART])
    make = partial(vector_env, options.pop("id"), episodes, int(words.generate_state(1)[0]), **options)
    loader = PlayLoader(make, episodes, agent, episodes, videos=0)
    try:
        return np.array([float(episode["episode_return"]) for episode in loader])
    finally:
        loader.close()
