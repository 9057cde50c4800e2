"""Policies: seeded, independent for each environment, and doing what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.envs import describe, make
from datamodules.envs.sprites_field import Field
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec
from datamodules.policies import StickyPolicy, make_policy

SPACES = [ActionSpace("discrete", (5,)), ActionSpace("multi_discrete", (2, 7)), ActionSpace("continuous", (3,))]


def run(policy, n, steps, starts=()):
    """(steps, n, ...) actions; ``starts`` are the steps at which episodes begin."""
    memory, actions = policy.initial_state(n), []
    for t in range(steps):
        action, memory, extras = policy.act({}, np.full(n, t in starts or t == 0), memory)
        assert extras == {}
        actions.append(action)
    return np.stack(actions)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: s.kind)
@pytest.mark.parametrize("repeat", [0.0, 0.75])
def test_actions_are_in_the_space_and_streams_are_independent(space, repeat):
    four = run(StickyPolicy(space, 1, repeat), 4, 200)
    assert four.shape == (200, 4, *space.shape) and four.dtype == space.dtype
    low, high = (-1, 1) if space.kind == "continuous" else (0, np.array(space.sizes) - 1)
    assert (four >= low).all() and (four <= high).all()
    np.testing.assert_array_equal(run(StickyPolicy(space, 1, repeat), 2, 200), four[:, :2])  # whatever stands beside it
    assert (four[:, 0] != four[:, 1]).any()
    assert (run(StickyPolicy(space, 2, repeat), 4, 200) != four).any()


def test_every_action_is_drawn_equally_often_and_held_as_documented():
    space = SPACES[0]
    for repeat in (0.0, 0.75):
        actions = run(StickyPolicy(space, 0, repeat), 8, 4000)
        share = np.bincount(actions.ravel(), minlength=5) / actions.size
        np.testing.assert_allclose(share, 0.2, atol=0.015)
        kept = (actions[1:] == actions[:-1]).mean()
        assert kept == pytest.approx(repeat + (1 - repeat) / 5, abs=0.015)


def test_rightward_gives_half_of_its_draws_to_actions_to_the_right():
    names = ("left", "noop", "right_down", "right", "up")
    spec = ExperienceSpec({"vector": (4,)}, ActionSpace("discrete", (5,), names))
    actions = run(make_policy("rightward", "coinrun", spec, 0), 8, 4000)
    share = np.bincount(actions.ravel(), minlength=5) / actions.size
    np.testing.assert_allclose(share, [0.1, 0.1, 0.35, 0.35, 0.1], atol=0.02)
    assert actions.dtype == np.int64 and (actions[1:] == actions[:-1]).mean() > 0.75


def test_a_new_episode_forgets_the_last_action():
    actions = run(StickyPolicy(SPACES[0], 0, repeat=1.0), 200, 20, starts=(10,))
    assert (actions[1:10] == actions[0]).all() and (actions[11:] == actions[10]).all()
    assert (actions[9] != actions[10]).mean() == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("size", [32, 64])
def test_sprites_policies_act_on_the_truth(size):
    """Through the vector interface: the oracle ends every episode at the goal, the straight line mostly at the wall."""
    reached = {}
    for name in ("scripted", "straight"):
        env = make("sprites", 8, 0, size=size, rooms=True)
        policy = make_policy(name, "sprites", env.envs[0].experience, 0)
        observation, memory = env.reset()[0], policy.initial_state(8)
        ends = np.zeros(2, int)
        for _ in range(250):
            action, memory, _ = policy.act(observation, np.zeros(8, bool), memory)
            observation, _, terminated, truncated, _ = env.step(action)
            ends += terminated.sum(), truncated.sum()
        reached[name] = ends
    assert reached["scripted"][0] > 50 and reached["scripted"][1] == 0
    assert 0 < reached["straight"][0] < reached["straight"][1]


def test_without_rooms_both_go_straight():
    env = make("sprites", 4, 0, size=32)
    spec = env.envs[0].experience
    observation = env.reset()[0]
    actions = [
        make_policy(name, "sprites", spec, 0).act(observation, np.ones(4, bool), None)[0]
        for name in ("scripted", "straight")
    ]
    np.testing.assert_array_equal(*actions)
    field, (x, y, goal_x, goal_y) = Field(32, False), observation["state"][0, :4]
    assert actions[0][0] == field.straight_action((x, y), (goal_x, goal_y)) != 0


@pytest.mark.parametrize(
    ("name", "env_id", "said"),
    [
        ("best", "sprites", "no policy 'best' for sprites; it has random, sticky, rightward, scripted, straight"),
        ("straight", "pong", "it has random, sticky, scripted"),
        ("rightward", "CartPole-v1", "no policy 'rightward' for CartPole-v1; it has random, sticky"),
        ("scripted", "CartPole-v1", "no policy 'scripted' for CartPole-v1; it has random, sticky"),
    ],
)
def test_unknown_policies_are_refused(name, env_id, said):
    spec = ExperienceSpec({"vector": (4,)}, SPACES[0]) if env_id != "sprites" else describe("sprites")
    with pytest.raises(ExperienceError, match=said):
        make_policy(name, env_id, spec, 0)
