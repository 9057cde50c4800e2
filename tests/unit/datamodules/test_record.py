"""Recording: time alignment, the budget, closing what is open, and the same bytes for the same seed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import datamodules.record
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, check_episode
from datamodules.record import collect, record
from datamodules.shards import iter_episodes, read_index

SPEC = ExperienceSpec({"vector": (4,)}, ActionSpace("discrete", (7,)))


class Diary(gymnasium.Env):
    """Observes (game, step, last action, 0); the reward is 10 x step + last action. Games last ``lengths`` in turn.

    Odd games end for good, even ones by a time limit.
    """

    observation_space = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (4,), np.float32)})
    action_space = spaces.Discrete(7)

    def __init__(self, lengths, reward_at=None):
        self.lengths, self.reward_at, self.game = lengths, reward_at or {}, -1

    def reset(self, *, seed=None, options=None):
        self.game, self.step_count = self.game + 1, 0
        return self._look(0), {}

    def step(self, action):
        self.step_count += 1
        over = self.step_count >= self.lengths[self.game % len(self.lengths)]
        reward = self.reward_at.get(self.step_count, 10.0 * self.step_count + action)
        return self._look(action), reward, over and self.game % 2 == 1, over and self.game % 2 == 0, {}

    def _look(self, action):
        return {"vector": np.array([self.game, self.step_count, action, 0], np.float32)}


class Counting:
    """A policy that plays 1, 2, ... 6, 1, ... and remembers what it was shown."""

    def __init__(self):
        self.first = []

    def initial_state(self, n):
        return 0

    def act(self, observation, is_first, state):
        self.first.append(is_first.copy())
        return np.full(len(is_first), state % 6 + 1), state + 1, {}


def vector_env(*lengths, **options):
    return SyncVectorEnv(
        [lambda lengths=each: Diary(lengths, **options) for each in lengths], autoreset_mode=AutoresetMode.NEXT_STEP
    )


def test_actions_rewards_and_flags_are_aligned_as_the_contract_says():
    policy = Counting()
    episodes = list(collect(vector_env([3, 5]), SPEC, policy, 4 + 6 + 4))
    assert [len(rows["reward"]) for rows in episodes] == [4, 6, 4]
    for number, rows in enumerate(episodes):
        check_episode(rows, SPEC)
        steps = len(rows["reward"])
        np.testing.assert_array_equal(rows["vector"][:, 0], number)
        np.testing.assert_array_equal(rows["vector"][:, 1], np.arange(steps))
        # the action stored at t is the one that the environment has seen when it shows frame t + 1
        np.testing.assert_array_equal(rows["vector"][1:, 2], rows["action"][:-1])
        assert (rows["action"][:-1] > 0).all() and rows["action"][-1] == 0
        # the reward comes with the frame that the action led to
        np.testing.assert_array_equal(rows["reward"][1:], 10 * np.arange(1, steps) + rows["action"][:-1])
        assert rows["reward"][0] == 0
        np.testing.assert_array_equal(rows["is_first"], np.arange(steps) == 0)
        np.testing.assert_array_equal(rows["is_last"], np.arange(steps) == steps - 1)
        assert rows["is_terminal"].any() == (number % 2 == 1)
    np.testing.assert_array_equal(np.concatenate(policy.first)[:14], np.concatenate([r["is_first"] for r in episodes]))


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5),
    steps=st.integers(2, 60),
)
def test_the_budget_is_met_and_every_episode_is_whole(lengths, steps):
    reported = []
    episodes = list(collect(vector_env(*lengths), SPEC, Counting(), steps, reported.append))
    total = sum(check_episode(rows, SPEC) for rows in episodes)
    assert min(len(rows["reward"]) for rows in episodes) >= 2
    assert total == sum(reported) and steps - 1 <= total <= steps


def test_the_budget_is_met_exactly_while_an_episode_is_open():
    for steps in range(2, 40):
        episodes = list(collect(vector_env([50], [9]), SPEC, Counting(), steps))
        assert sum(len(rows["reward"]) for rows in episodes) == steps


def test_what_the_budget_cuts_is_closed_like_a_time_limit():
    cut = list(collect(vector_env([50], [50]), SPEC, Counting(), 11))
    assert [len(rows["reward"]) for rows in cut] == [6, 5]
    for rows in cut:
        check_episode(rows, SPEC)
        assert rows["is_last"][-1] and not rows["is_terminal"].any() and rows["action"][-1] == 0


def test_other_autoreset_modes_and_missing_observations_are_refused():
    env = SyncVectorEnv([lambda: Diary([3])], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ExperienceError, match="NEXT_STEP"):
        next(collect(env, SPEC, Counting(), 10))
    wants = ExperienceSpec({"frames": (8, 8, 3)}, SPEC.action)
    with pytest.raises(ExperienceError, match="delivers no 'frames' but vector"):
        next(collect(vector_env([3]), wants, Counting(), 10))


def files(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


@pytest.mark.parametrize("env_id", ["sprites", "CartPole-v1"])
def test_the_same_seed_gives_the_same_bytes_whatever_happened_before(tmp_path, env_id):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        np.random.seed(len(name) + seed)
        np.random.rand(7)  # the global stream is nobody's business
        record(env_id, tmp_path / name, 900, seed=seed, num_envs=3, progress=False)
    assert files(tmp_path / "a") == files(tmp_path / "b") != files(tmp_path / "c")


def test_a_recording_holds_what_was_asked_for(tmp_path):
    done = record(
        "sprites", tmp_path / "r", 1000, "scripted", 4, 4, env_args={"rooms": True, "size": 32}, progress=False
    )
    index = read_index(tmp_path / "r")
    episodes = list(iter_episodes(tmp_path / "r"))
    assert done.steps == 1000 == sum(len(rows["reward"]) for rows in episodes)
    assert done.episodes == len(episodes) and done.bytes == sum(shard.bytes for shard in index.shards)
    assert index.environment == {"id": "sprites", "rooms": True, "size": 32}
    assert (index.policy, index.seed) == ("scripted", 4)
    assert sum(rows["is_terminal"].any() for rows in episodes) >= len(episodes) - 4  # the oracle; the rest was cut
    assert all(rows["frames"].shape[1:] == (32, 32, 3) for rows in episodes)


def test_broken_rewards_and_occupied_folders(tmp_path, monkeypatch):
    def broken(env_id, num_envs, seed):
        env = vector_env([3, 3, 8], reward_at={7: float("nan")})
        env.experience = SPEC
        return env

    record("sprites", tmp_path / "r", 50, progress=False)
    before = files(tmp_path / "r")
    with pytest.raises(ExperienceError, match="choose another folder, or overwrite"):
        record("sprites", tmp_path / "r", 50, progress=False)
    assert files(tmp_path / "r") == before
    monkeypatch.setattr(datamodules.record, "make", broken)
    with pytest.raises(ExperienceError, match="episode 2: 'reward' holds NaN"):
        record("broken", tmp_path / "new", 60, "random", num_envs=1, progress=False)
    assert len(list(iter_episodes(tmp_path / "new"))) == 2  # the whole episodes before it are kept
    with pytest.raises(ExperienceError, match="steps 1 must be"):
        record("sprites", tmp_path / "s", 1)


def test_an_interrupt_keeps_what_was_finished(tmp_path, monkeypatch):
    original = datamodules.record.collect

    def interrupted(*args):
        for number, rows in enumerate(original(*args)):
            if number == 3:
                raise KeyboardInterrupt
            yield rows

    monkeypatch.setattr(datamodules.record, "collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record("sprites", tmp_path / "r", 600, num_envs=1, env_args={"length": 20}, progress=False)
    assert [len(rows["reward"]) for rows in iter_episodes(tmp_path / "r")] == [21, 21, 21]
