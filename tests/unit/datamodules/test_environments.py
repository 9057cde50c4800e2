"""The registry: one interface, seeds that mean what they say, and one clear line for what does not exist."""

from __future__ import annotations

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from datamodules.envs import describe, make, make_one, require_next_step
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, Factor


class OwnEnv(gymnasium.Env):
    """What a user may write: a dict of the contract's keys and the names of its truth."""

    experience = ExperienceSpec({"frames": (4, 4, 3)}, ActionSpace("discrete", (2,), ("left", "right")), (Factor("x"),))
    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict(
        {"frames": spaces.Box(0, 255, (4, 4, 3), np.uint8), "state": spaces.Box(-9, 9, (1,), np.float32)}
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0
        return self._look(), {}

    def step(self, action):
        self.x += 2 * action - 1
        return self._look(), 0.0, abs(self.x) > 3, False, {}

    def _look(self):
        return {"frames": np.full((4, 4, 3), 100 + self.x, np.uint8), "state": np.array([self.x], np.float32)}


class GreyEnv(gymnasium.Env):
    """A grey picture without a channel axis, and actions counted from 5."""

    observation_space = spaces.Box(0, 255, (6, 5), np.uint8)
    action_space = spaces.Discrete(3, start=5)
    asked = ()

    def __init__(self, broken=False):
        self.broken = broken

    def reset(self, *, seed=None, options=None):
        return np.zeros((6, 5), np.uint8), {}

    def step(self, action):
        GreyEnv.asked = (*GreyEnv.asked, int(action))
        return np.zeros((6, 5), np.float64 if self.broken else np.uint8), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Own-v0", OwnEnv)
    gymnasium.register("Grey-v0", GreyEnv)
    yield
    for name in ("Own-v0", "Grey-v0"):
        del gymnasium.registry[name]


def run(env, actions):
    observation, _ = env.reset()
    seen = [observation]
    for action in actions:
        seen.append(env.step(action)[0])
    return {key: np.stack([o[key] for o in seen]) for key in seen[0]}


def test_an_environment_does_not_depend_on_how_many_stand_beside_it():
    actions = np.random.default_rng(0).integers(0, 5, (250, 3))
    three = run(make("sprites", 3, 4, noise=1.0), actions)
    one = run(make("sprites", 1, 4, noise=1.0), actions[:, :1])
    for key, value in one.items():
        np.testing.assert_array_equal(value[:, 0], three[key][:, 0])


def test_seeds_share_no_environment():
    starts = [tuple(o) for seed in range(4) for o in make("sprites", 8, seed).reset()[0]["state"][:, :4]]
    assert len(set(starts)) > 30  # of 32: with Gymnasium's own seed + i it would be 11
    env = make("sprites", 2, 0)
    first, again = env.reset(seed=3)[0]["state"], make("sprites", 2, 3).reset()[0]["state"]
    np.testing.assert_array_equal(first, again)
    assert (env.reset()[0]["state"][:, :4] != first[:, :4]).any()  # a later reset goes on


@pytest.mark.parametrize("env_id", ["sprites", "CartPole-v1", "gymnasium:Pendulum-v1", "Own-v0", "Grey-v0"])
def test_what_is_delivered_is_what_is_described(env_id):
    spec, env = describe(env_id), make(env_id, 2, 0)
    assert ExperienceSpec.from_dict(spec.to_dict()) == spec
    require_next_step(env)
    observation = env.reset()[0]
    assert set(observation) == {*spec.observations, *(["state"] if spec.factors else [])}
    for key, shape in spec.observations.items():
        assert observation[key].shape == (2, *shape)
        assert observation[key].dtype == (np.uint8 if len(shape) == 3 else np.float32)
    if spec.factors:
        assert observation["state"].shape == (2, len(spec.factors)) and observation["state"].dtype == np.float32


def test_gymnasium_actions_are_put_into_the_contracts_ranges():
    spec = describe("Pendulum-v1")
    assert spec.action == ActionSpace("continuous", (1,)) and spec.observations == {"vector": (3,)}
    env = make_one("Pendulum-v1")
    env.reset(seed=0)
    env.step(np.array([1.0], np.float32))
    assert env.unwrapped.last_u == pytest.approx(2.0)  # the pendulum's torque goes to 2
    GreyEnv.asked = ()
    env = make("Grey-v0", 1, 0)
    env.reset()
    env.step(np.array([0]))
    env.step(np.array([2]))
    assert GreyEnv.asked == (5, 7)


def test_wrong_dtypes_from_an_environment_are_refused():
    env = make("Grey-v0", 1, 0, broken=True)
    env.reset()
    with pytest.raises(ExperienceError, match="'frames' came as float64"):
        env.step(np.array([0]))


def test_other_autoreset_modes_are_refused():
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        with pytest.raises(ExperienceError, match="NEXT_STEP"):
            require_next_step(SyncVectorEnv([OwnEnv], autoreset_mode=mode))


@pytest.mark.parametrize(
    ("env_id", "kwargs", "said"),
    [
        ("sprite", {}, "no environment 'sprite'; known are pong, sprites"),
        ("nowhere:Env-v0", {}, "cannot make 'nowhere:Env-v0'"),
        *[(env_id, {}, f"no environment '{env_id}'; known are") for env_id in (":", "a:b:c", ":b", "a:", "::", "")],
        ("sprites", {"room": True}, "no option 'room'; it has size, rooms"),
        ("sprites", {"rooms": "yes"}, "rooms is 'yes', expected bool"),
        ("sprites", {"noise": "loud"}, "noise is 'loud', expected float"),
        ("CartPole-v1", {"size": 64}, "unexpected keyword argument 'size'"),
        ("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3", {}, "not a box"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(env_id, kwargs, said):
    with pytest.raises(ExperienceError, match=said) as caught:
        make(env_id, 1, 0, **kwargs)
    assert "\n" not in str(caught.value)


def test_numbers_that_make_no_sense():
    with pytest.raises(ExperienceError, match="num_envs 0"):
        make("sprites", 0, 0)
    with pytest.raises(ExperienceError, match="seed -1"):
        make("sprites", 1, -1)


def test_pong_without_ale_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "datamodules.envs.pong", raising=False)
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ExperienceError, match=r"\[atari\]"):
        make("pong", 1, 0)


class NamesakeEnv(gymnasium.Env):
    action_space = spaces.Discrete(2)

    def __init__(self, key):
        self.observation_space = spaces.Dict({key: spaces.Box(-1, 1, (3,), np.float32)})


@pytest.mark.parametrize("key", ["reward", "state", "weight", "stream", "step", "latent_deter"])
def test_an_observation_named_like_something_else_in_a_batch_is_refused(key):
    gymnasium.register("Namesake-v0", NamesakeEnv)
    with pytest.raises(ExperienceError, match=f"an observation cannot be named '{key}'"):
        describe("Namesake-v0", key=key)
