"""Collector: what an environment delivered stands in the replay and, episode by episode, in the data contract's alignment."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from datamodules.collector import Collector, row_layout
from datamodules.envs.registry import environment_seeds
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, check_episode
from datamodules.replay_memory import Replay

SPEC = ExperienceSpec({"vector": (2,)}, ActionSpace("discrete", (3,)))
LAYOUT = row_layout(SPEC)


class Counter(gymnasium.Env):
    """Shows its step and the last action; rewards with the action; ends after 4 steps, every other time by a time limit."""

    observation_space = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = spaces.Discrete(3)
    experience = SPEC

    def __init__(self, dies_at=None, nan_at=None):
        self.dies_at, self.nan_at, self.episode, self.steps = dies_at, nan_at, -1, 0

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return {"vector": np.array([0, -1], np.float32)}, {}

    def step(self, action):
        self.t, self.steps = self.t + 1, self.steps + 1
        if self.steps == self.dies_at:
            raise RuntimeError("gone")
        reward = np.nan if self.steps == self.nan_at else float(action)
        over, odd = self.t == 4, self.episode % 2 == 1
        return {"vector": np.array([self.t, action], np.float32)}, reward, over and not odd, over and odd, {}


class Cycle:
    """Acts 1, 2, 0, 1 ... and stores how often it acted as its latent."""

    def initial_state(self, n):
        return 0

    def act(self, observation, is_first, state):
        n = len(is_first)
        return np.full(n, (state + 1) % 3), state + 1, {"count": np.full((n, 1), state, np.float32)}


def collected(steps, n=2, **options):
    episodes = []
    env = SturdyVectorEnv([partial(Counter, **options)] * n, environment_seeds(0, n))
    replay = Replay(LAYOUT, {"count": ((1,), np.dtype(np.float32))}, n, steps, 1000, online=False)
    collector = Collector(env, replay, episodes.append)
    for _ in range(steps):
        collector.step(Cycle())
    return collector, replay, episodes


def test_rows_and_episodes_are_in_the_contracts_alignment():
    collector, replay, episodes = collected(12)
    assert collector.env_steps == 24 and len(episodes) == 4 and [n for _, n in collector.returns] == [4] * 4
    for episode in episodes:
        assert check_episode(episode, SPEC) == 5
        np.testing.assert_array_equal(episode["vector"][1:, 1], episode["action"][:-1])  # what was done, one row before
        np.testing.assert_array_equal(episode["reward"][1:], episode["action"][:-1])
    assert [bool(episode["is_terminal"][-1]) for episode in episodes] == [True, True, False, False]
    drawn = replay.sample(1)
    assert drawn["is_first"][0].nonzero()[0].tolist() == [0, 5, 10] and drawn["is_last"][0].nonzero()[0].tolist() == [
        4,
        9,
    ]
    assert not drawn["action"][0][[4, 9]].any(), "the action at the end is void"
    assert drawn["latent_count"].tolist() == [[0]]


def test_an_episode_that_dies_is_closed_at_its_newest_row():
    collector, replay, episodes = collected(5, n=1, dies_at=3)
    assert collector.env.deaths == 1 and [len(episode["reward"]) for episode in episodes] == [3]
    assert check_episode(episodes[0], SPEC) == 3 and not episodes[0]["is_terminal"].any()
    drawn = replay.sample(1)
    assert drawn["is_last"][0].tolist() == [False, False, True, False, False]
    assert drawn["is_first"][0].tolist() == [True, False, False, True, False]
    assert drawn["action"][0, 2] == 0 and drawn["reward"][0, 3] == 0


def test_a_reward_that_is_not_finite_is_an_error():
    with pytest.raises(ExperienceError, match=r"environment 0 delivers a 'reward' that is not finite at step 6"):
        collected(9, nan_at=3)
