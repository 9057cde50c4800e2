"""Environments side by side: NEXT_STEP order, the death of one, processes, and going back to a snapshot."""

import os
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from datamodules.envs import make_one, require_next_step
from datamodules.envs.registry import environment_seeds
from datamodules.envs.restorable import RestorableEnv
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec


class Counter(gymnasium.Env):
    """Counts its steps from a start drawn with its seed; ends after 5; may die at a step."""

    observation_space = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (2,), np.float32)})
    action_space = spaces.Discrete(3)
    experience = ExperienceSpec({"vector": (2,)}, ActionSpace("discrete", (3,)))

    def __init__(self, dies_at=None, how="raise"):
        self.dies_at, self.how = dies_at, how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.dies_at == 0:
            os._exit(7)
        self.start, self.t = self.np_random.integers(1000), 0
        return self._see(), {}

    def step(self, action):
        self.t += 1
        if self.t == self.dies_at and self.start % 2:
            if self.how == "exit":
                os._exit(7)
            raise RuntimeError("the simulator exploded")
        return self._see(), float(action), self.t == 5, False, {}

    def _see(self):
        return {"vector": np.array([self.start, self.t], np.float32)}


def sturdy(n=4, processes=0, **options):
    return SturdyVectorEnv([partial(Counter, **options)] * n, environment_seeds(3, n), processes)


def play(env, steps):
    """What (start, t, reward, over, died) every step brought."""
    (first, _), seen = env.reset(), []
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(np.arange(env.num_envs) % 3)
        seen.append((observation["vector"], reward, terminated | truncated, info["died"]))
    env.close()
    return first["vector"], seen


@pytest.mark.parametrize("processes", [0, 2])
def test_next_step_order(processes):
    env = sturdy(processes=processes)
    require_next_step(env)
    first, seen = play(env, 7)
    assert first[:, 1].tolist() == [0] * 4 and len(set(first[:, 0])) == 4
    vector, reward, over, _ = seen[4]
    assert (vector[:, 1] == 5).all() and over.all() and reward.tolist() == [0, 1, 2, 0]
    vector, reward, over, _ = seen[5]  # the first frame of the next episode, whatever the action
    assert (vector[:, 1] == 0).all() and not over.any() and not reward.any() and (vector[:, 0] != first[:, 0]).all()


def test_processes_change_nothing():
    plain, spread = play(sturdy(5), 15), play(sturdy(5, processes=3), 15)
    np.testing.assert_array_equal(plain[0], spread[0])
    for a, b in zip(plain[1], spread[1], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("processes", "how", "cause"), [(0, "raise", "exploded"), (2, "raise", "exploded"), (4, "exit", "exit code 7")]
)
def test_one_that_dies_is_made_anew_and_counted_and_the_others_go_on(processes, how, cause):
    env = sturdy(processes=processes, dies_at=3, how=how)
    odd = [int(start) % 2 for start in env.reset()[0]["vector"][:, 0]]
    assert 0 < sum(odd) < 4
    env.step(np.zeros(4, int)), env.step(np.zeros(4, int))
    observation, reward, terminated, truncated, info = env.step(np.ones(4, int))
    assert [cause in died for died in info["died"]] == [bool(o) for o in odd] and env.deaths == sum(odd)
    assert observation["vector"][:, 1].tolist() == [0 if o else 3 for o in odd]
    assert reward.tolist() == [0 if o else 1 for o in odd] and not (terminated | truncated).any()
    env.close()


class Mortal(Counter):
    def step(self, action):
        raise RuntimeError("the simulator exploded")


def test_one_that_dies_again_and_again_among_good_ones_is_an_error():
    env = SturdyVectorEnv([Counter, Mortal, Counter], environment_seeds(3, 3), most_deaths=3)
    env.reset()
    said = "environment 1 died 4 times before an episode of it ended, the last time of: RuntimeError: the simulator"
    with pytest.raises(ExperienceError, match=said):
        for _ in range(50):
            env.step(np.zeros(3, int))


class Endless(Counter):
    """Dies after so many steps, and never ends otherwise."""

    def __init__(self, lives, how="raise"):
        super().__init__(how=how)
        self.lives, self.total = lives, 0

    def step(self, action):
        self.total += 1
        if self.total == self.lives:
            if self.how == "exit":
                os._exit(7)
            raise RuntimeError("worn out")
        self.t += 1
        return self._see(), 0.0, False, False, {}


def test_an_endless_one_may_die_seldom():
    """A thousand steps without a death make up for those before."""
    env = SturdyVectorEnv([partial(Endless, 1001)], environment_seeds(3, 1), most_deaths=2)
    env.reset()
    for _ in range(4 * 1001):
        env.step(np.zeros(1, int))
    assert env.deaths == 4
    env = SturdyVectorEnv([partial(Endless, 1000)], environment_seeds(3, 1), most_deaths=2)
    env.reset()
    with pytest.raises(ExperienceError, match="died 3 times"):
        for _ in range(3 * 1000):
            env.step(np.zeros(1, int))


def test_all_that_died_with_a_process_are_named(request):
    env = SturdyVectorEnv([Counter, partial(Endless, 3, "exit"), Counter], environment_seeds(3, 3), 2, most_deaths=0)
    request.addfinalizer(env.close)
    env.reset()
    said = r"its process died \(exit code 7\), and with it environments 0, 1, any of which may have done it"
    with pytest.raises(ExperienceError, match=said):
        for _ in range(3):
            env.step(np.zeros(3, int))


def test_deaths_between_episodes_that_end_are_counted_and_survived():
    env = SturdyVectorEnv([partial(Counter, dies_at=1)] * 4, environment_seeds(3, 4))
    env.reset()
    for _ in range(200):
        env.step(np.zeros(4, int))
    assert env.deaths > 20


def test_a_past_that_goes_otherwise_this_time_begins_another_episode():
    env = sturdy()
    env.reset()
    observation, *_ = env.step(np.zeros(4, int))
    snapshots = env.snapshot()
    snapshots[1]["actions"] = [np.array("no action")]  # the environment raises
    seen = [{"vector": vector} for vector in observation["vector"]]
    begun = env.restore(snapshots, seen)
    assert begun[0] is begun[2] is begun[3] is None and begun[1]["vector"][1] == 0


def test_one_that_dies_whenever_it_begins_is_an_error():
    with pytest.raises(ExperienceError, match=r"cannot reset: its process died \(exit code 7\)"):
        sturdy(processes=1, dies_at=0).reset()


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("env_id", ["sprites", "CartPole-v1"])
def test_a_snapshot_brings_back_the_place_and_all_that_follows(env_id, processes):
    makers, seeds = [partial(make_one, env_id)] * 3, environment_seeds(0, 3)
    one, two = SturdyVectorEnv(makers, seeds, processes), SturdyVectorEnv(makers, seeds)
    draw = np.random.default_rng(0)

    def act(n):
        return draw.integers(0, one.single_action_space.n, n)

    one.reset()
    for _ in range(30):
        observation, *_ = one.step(act(3))
    seen = [{key: value[i] for key, value in observation.items()} for i in range(3)]
    assert two.restore(one.snapshot(), seen) == [None] * 3
    for _ in range(40):
        actions = act(3)
        for a, b in zip(one.step(actions)[:4], two.step(actions)[:4], strict=True):
            np.testing.assert_equal(a, b)
    one.close(), two.close()


def test_an_environment_that_does_not_come_back_to_its_place_begins_anew():
    env = sturdy()
    env.reset()
    observation, *_ = env.step(np.zeros(4, int))
    seen = [{"vector": vector} for vector in observation["vector"]]
    seen[2] = {"vector": seen[2]["vector"] + 1}
    begun = env.restore(env.snapshot(), seen)
    assert begun[0] is begun[1] is begun[3] is None and begun[2]["vector"][1] == 0
    observation, *_ = env.step(np.zeros(4, int))
    assert observation["vector"][:, 1].tolist() == [2, 2, 1, 2] and observation["vector"][2, 0] != seen[2]["vector"][0]


def test_episodes_have_seeds_of_their_own():
    one, two = RestorableEnv(Counter(), (5, 0)), RestorableEnv(Counter(), (5, 0))
    starts = [one.reset()[0]["vector"][0] for _ in range(4)]
    assert len(set(starts)) == 4
    for _ in range(3):
        two.reset()
        two.step(1)
    assert two.reset()[0]["vector"][0] == starts[3], "what was played before does not matter"
