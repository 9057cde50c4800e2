"""Pong: the memory map against the pixels of the console."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ale_py")

from datamodules.envs import make
from datamodules.envs.pong import ACTIONS, FACTORS, SIDE, TOP, PongEnv, decode_ram
from datamodules.policies import make_policy

pytestmark = pytest.mark.atari
COLOURS = {"ball": (236, 236, 236), "player": (92, 186, 92), "enemy": (213, 130, 74)}
HEIGHT = {"ball": 4, "player": 16, "enemy": 16}
AT = {factor.name: i for i, factor in enumerate(FACTORS)}


@pytest.fixture(scope="module")
def played():
    """1800 steps of random play: console pictures (field only), memory, observations, episode starts."""
    env, random = PongEnv(), np.random.default_rng(0)
    observation, first, trace = env.reset(seed=0)[0], True, []
    for _ in range(1800):
        ale = env.atari.ale
        trace.append((ale.getScreenRGB()[TOP : TOP + SIDE].copy(), ale.getRAM().copy(), observation, first))
        observation, _, terminated, truncated, _ = env.step(int(random.integers(6)))
        first = terminated or truncated
        if first:
            observation, _ = env.reset()
    return trace


def things(picture):
    """Name -> (rows, columns) of its pixels."""
    red = picture[..., 0]  # the colours differ in it, and from the background's
    return {name: np.nonzero(red == colour[0]) for name, colour in COLOURS.items()}


def test_ram_agrees_with_the_pixels_within_one(played):
    compared = dict.fromkeys(COLOURS, 0)
    for picture, ram, _, _ in played:
        truth = decode_ram(ram)
        for name, (rows, cols) in things(picture).items():
            assert (len(rows) > 0) == np.isfinite(truth[f"{name}_y"]), name
            whole = len(rows) == HEIGHT[name] * (2 if name == "ball" else 4)
            if whole and np.ptp(rows) == HEIGHT[name] - 1:  # not clipped by the edge, nothing lies over it
                assert abs(rows.mean() - truth[f"{name}_y"]) <= 1
                if name == "ball":
                    assert abs(cols.mean() - truth["ball_x"]) <= 1
                compared[name] += 1
    assert min(compared.values()) > 700


def test_state_is_in_pixels_of_the_stored_picture(played):
    for _, ram, observation, _ in played:
        truth, state = decode_ram(ram), observation["state"]
        for name in ("ball_x", "ball_y", "player_y", "enemy_y"):
            np.testing.assert_allclose((state[AT[name]] + 0.5) * SIDE / 64 - 0.5, truth[name], atol=1e-4)
        assert state[AT["ball_in_play"]] == truth["ball_in_play"]


def test_ball_velocity_never_crosses_a_serve(played):
    state = np.stack([observation["state"] for *_, observation, _ in played])
    first = np.array([first for *_, first in played])
    velocity, in_play = state[:, AT["ball_vx"]], state[:, AT["ball_in_play"]] == 1
    assert np.isnan(velocity[first]).all() and np.isnan(velocity[~in_play]).all()
    both = in_play[1:] & in_play[:-1] & ~first[1:]
    assert np.isfinite(velocity[1:][both]).mean() > 0.99  # but where the ball hides under the upper edge
    assert np.nanmax(np.abs(velocity)) < 6  # a jump from one serve to the next would be tens of pixels
    serves = np.flatnonzero(in_play[1:] & ~in_play[:-1]) + 1
    assert len(serves) > 20 and np.isnan(velocity[serves]).all()


def test_the_picture_is_the_area_average_and_keeps_the_ball(played):
    fold = np.zeros((64, SIDE))
    for row in range(64):  # 5 console pixels are 2 of ours
        for column in range(SIDE):
            fold[row, column] = max(0, min(2.5 * (row + 1), column + 1) - max(2.5 * row, column)) / 2.5
    lost = 0
    for picture, _, observation, _ in played[::10]:
        exact = np.einsum("ih,hwc,jw->ijc", fold, picture.astype(float), fold, optimize=True)
        assert np.abs(exact - observation["frames"]).max() <= 1  # rounding
        x, y = observation["state"][[AT["ball_x"], AT["ball_y"]]]
        if np.isfinite(x) and 2 < y < 61:
            around = observation["frames"][round(y), round(x)].astype(int)
            lost += np.abs(around - (144, 72, 17)).max() < 20
    assert lost == 0


def test_minimal_actions_and_their_directions():
    assert len(ACTIONS) == PongEnv().action_space.n == 6
    moves = {}
    for name in ("noop", "right", "left"):
        env = PongEnv(repeat_action_probability=0.0)
        env.reset(seed=0)
        for _ in range(30):
            env.step(0)
        before = env.step(0)[0]["state"][AT["player_y"]]
        for _ in range(3):
            after = env.step(ACTIONS.index(name))[0]["state"][AT["player_y"]]
        moves[name] = after - before
    assert moves["noop"] == 0 and moves["right"] < -2 and moves["left"] > 2


def test_same_seed_same_game_and_the_script_plays_better_than_chance():
    actions = np.random.default_rng(0).integers(0, 6, (60, 2))
    games = []
    for seed in (3, 3, 4):
        env = make("pong", 2, seed)
        env.reset()
        games.append(np.stack([env.step(a)[0]["frames"] for a in actions]))
    np.testing.assert_array_equal(games[0], games[1])
    assert (games[0] != games[2]).any() and (games[0][:, 0] != games[0][:, 1]).any()
    lost = {}
    for name in ("random", "scripted"):
        env = make("pong", 1, 0)
        policy = make_policy(name, "pong", env.envs[0].experience, 0)
        observation, first, memory, lost[name] = env.reset()[0], np.ones(1, bool), policy.initial_state(1), 0
        for _ in range(1000):
            action, memory, _ = policy.act(observation, first, memory)
            observation, reward, terminated, truncated, _ = env.step(action)
            first, lost[name] = terminated | truncated, lost[name] + int(reward[0] < 0)
    assert lost["scripted"] < lost["random"] / 2
