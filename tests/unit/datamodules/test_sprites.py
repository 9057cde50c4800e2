"""The sprites world: the truth is in the picture, knobs turn only what they name, and rooms are hard without a plan."""

from __future__ import annotations

from collections import deque
from itertools import pairwise, product

import numpy as np
import pytest

from datamodules.envs.sprites import AGENT, BALL, GOAL, WALL, SpritesEnv
from datamodules.envs.sprites_field import ACTIONS, DIRECTIONS, Field
from datamodules.experience import ExperienceError

FULL = {"fork_probability": 0.5, "noise": 1.0, "distractor": 1.0, "distractor_predictability": 0.5}
WORLDS = [{"size": size, "rooms": rooms, **FULL} for size, rooms in product((32, 64), (False, True))]


def columns(env):
    return {factor.name: i for i, factor in enumerate(env.experience.factors)}


def pixels(picture, colour, box):
    """(rows, columns) of a colour inside a region."""
    part = picture[box.top : box.bottom + 1, box.left : box.right + 1]
    rows, cols = np.nonzero((part == np.array(colour, np.uint8)).all(-1))
    return rows + box.top, cols + box.left


def play(env, steps, seed=0, action_seed=0):
    """Observations, rewards and actions of random play across episodes; True where an episode begins."""
    random = np.random.default_rng(action_seed)
    observation, _ = env.reset(seed=seed)
    first, trace = True, []
    for _ in range(steps):
        action = int(random.integers(5))
        trace.append((observation["frames"], observation["state"], first))
        observation, _, terminated, truncated, _ = env.step(action)
        first = terminated or truncated
        if first:
            observation, _ = env.reset()
    frames, states, firsts = zip(*trace, strict=True)
    return np.stack(frames), np.stack(states), np.array(firsts)


def wilson(successes, trials, z=1.96):
    p, n = successes / trials, trials
    middle, reach = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)


# ---- what a probe must see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", WORLDS)
def test_nothing_is_ever_covered_not_even_where_agent_and_goal_overlap(options):
    env = SpritesEnv(**options)
    field, random = env.field, np.random.default_rng(1)
    ring_pixels = (2 * field.ring + 1) ** 2 - (2 * field.ring - 1) ** 2
    square = (2 * field.half + 1) ** 2
    overlaps = 0
    for trial in range(1500):
        env.reset(seed=trial)
        world, streams = env.get_state()
        if trial % 3:  # bring the agent to the goal, touching or inside
            reach = field.half + field.ring
            room = field.room(int(world.goal[0] > field.size // 2), field.half)
            dx, dy = random.integers(-reach, reach + 1, 2)
            x = int(np.clip(world.goal[0] + dx, room.left, room.right))
            y = int(np.clip(world.goal[1] + dy, room.top, room.bottom))
            world.agent = (x, y)
            overlaps += 1
        picture = env.set_state((world, streams))["frames"]
        assert len(pixels(picture, AGENT, field.field)[0]) == square
        assert len(pixels(picture, GOAL, field.field)[0]) >= ring_pixels / 2
        assert len(pixels(picture, BALL, field.sky)[0]) == square
        assert len(pixels(picture, env.distractor_colour, field.lane)[0]) == square
        if field.rooms:
            height, width = field.field.bottom - field.field.top + 1, field.wall_right - field.wall_left + 1
            assert len(pixels(picture, WALL, field.field)[0]) == (height - field.door_width) * width
    assert overlaps > 900


@pytest.mark.parametrize("options", WORLDS)
def test_state_is_where_the_pixels_are(options):
    env = SpritesEnv(**options)
    field, at = env.field, columns(env)
    frames, states, _ = play(env, 400)
    whole_rings = 0
    for picture, state in zip(frames, states, strict=True):
        for name, colour, box in (
            ("agent", AGENT, field.field),
            ("ball", BALL, field.sky),
            ("distractor", env.distractor_colour, field.lane),
        ):
            rows, cols = pixels(picture, colour, box)
            assert (cols.mean(), rows.mean()) == (state[at[f"{name}_x"]], state[at[f"{name}_y"]])
        rows, cols = pixels(picture, GOAL, field.field)
        if len(rows) == (2 * field.ring + 1) ** 2 - (2 * field.ring - 1) ** 2:
            assert (cols.mean(), rows.mean()) == (state[at["goal_x"]], state[at["goal_y"]])
            whole_rings += 1
        if field.rooms:
            opening = np.setdiff1d(
                np.arange(field.field.top, field.field.bottom + 1), pixels(picture, WALL, field.field)[0]
            )
            assert opening.mean() == state[at["door_y"]] and len(opening) == field.door_width
    assert whole_rings > 200


def test_regions_do_not_overlap_and_fill_the_picture():
    for size in (32, 64):
        field, count = Field(size, True), np.zeros((size, size), int)
        for box in (field.sky, field.noise, field.field, field.lane):
            count[box.top : box.bottom + 1, box.left : box.right + 1] += 1
        assert (count == 1).all()


@pytest.mark.parametrize("options", WORLDS)
def test_velocities_are_displacements_and_undefined_on_the_first_frame(options):
    env = SpritesEnv(**options)
    at = columns(env)
    _, states, first = play(env, 600)
    for position, velocity in (
        ("agent_x", "move_dx"),
        ("agent_y", "move_dy"),
        ("ball_x", "ball_vx"),
        ("ball_y", "ball_vy"),
    ):
        v = states[:, at[velocity]]
        assert np.isnan(v[first]).all()
        np.testing.assert_array_equal(v[1:][~first[1:]], np.diff(states[:, at[position]])[~first[1:]])


def test_a_wall_stops_the_agent_and_move_says_so():
    env = SpritesEnv(rooms=True)
    env.reset(seed=0)
    world, streams = env.get_state()
    world.agent = (env.field.wall_left - 1 - env.field.half, world.door + env.field.slack + 1)  # a pixel below the door
    env.set_state((world, streams))
    state = env.step(ACTIONS.index("right"))[0]["state"]
    at = columns(env)
    assert state[at["move_dx"]] == 0 and state[at["agent_x"]] == world.agent[0]
    state = env.step(ACTIONS.index("up"))[0]["state"]
    assert state[at["move_dy"]] == -env.field.stride
    state = env.step(ACTIONS.index("right"))[0]["state"]
    assert state[at["move_dx"]] == env.field.stride


# ---- knobs -------------------------------------------------------------------------------------------------------------


def test_noise_and_distractor_change_nothing_outside_their_regions():
    plain_env = SpritesEnv(fork_probability=0.5)
    plain, plain_state, _ = play(plain_env, 250)
    noisy, noisy_state, _ = play(SpritesEnv(**FULL), 250)
    field = plain_env.field
    np.testing.assert_array_equal(noisy_state[:, :-2], plain_state)
    differs = (plain != noisy).any((0, 3))
    for box in (field.noise, field.lane):
        differs[box.top : box.bottom + 1, box.left : box.right + 1] = False
    assert not differs.any()


def test_noise_strength_is_the_amplitude_of_independent_pixels():
    for strength in (0.25, 1.0):
        env = SpritesEnv(noise=strength)
        frames, _, _ = play(env, 200)
        patch = frames[:, env.field.noise.top : env.field.noise.bottom + 1, env.field.noise.left :].astype(float)
        uniform = strength * 255 / np.sqrt(12)
        assert patch.std() == pytest.approx(uniform, rel=0.05)
        flat = patch.reshape(len(patch), -1)
        assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_fork_turns_back_with_its_known_probability(probability):
    env = SpritesEnv(fork_probability=probability, length=30_000, size=32)
    at = columns(env)
    env.reset(seed=3)
    ball, forks = [], []
    for _ in range(30_000):
        state = env.step(0)[0]["state"]
        forks.append(state[at["fork"]])
        ball.append((state[at["ball_x"]], state[at["ball_vx"]]))
    forks, ball = np.array(forks), np.array(ball)
    decided = np.flatnonzero(np.isnan(forks[:-1]) & ~np.isnan(forks[1:])) + 1
    turned = forks[decided] == 1
    assert len(decided) > 1000
    low, high = wilson(turned.sum(), len(decided), z=4)
    assert low < probability < high
    # what was decided is seen in the very frame that says so
    reversed_ = np.sign(ball[decided, 1]) != np.sign(ball[decided - 1, 1])
    np.testing.assert_array_equal(reversed_, turned)


def test_without_a_fork_the_ball_is_deterministic():
    env = SpritesEnv()
    assert "fork" not in columns(env)
    env.reset(seed=0)
    here = env.get_state()
    futures = []
    for seed in (1, 2):
        env.set_state(here, seed=seed)
        futures.append([env.step(0)[0]["state"][6:8] for _ in range(90)])
    np.testing.assert_array_equal(*futures)


@pytest.mark.parametrize("predictability", [0.0, 0.6, 1.0])
def test_predictability_is_the_share_of_steps_on_course(predictability):
    env = SpritesEnv(distractor=1.0, distractor_predictability=predictability, length=3000)
    lane, stride, at = env.field.lane.shrunk(env.field.half), env.field.stride, columns(env)
    env.reset(seed=0)
    x = np.array([env.step(0)[0]["state"][at["distractor_x"]] for _ in range(3000)])
    step = np.diff(x)
    near = (2 * stride + 1) / (lane.right - lane.left + 1)  # a jump lands within a stride about so often
    assert (np.abs(step) <= stride).mean() == pytest.approx(predictability + (1 - predictability) * near, abs=0.04)
    if predictability == 1:  # straight on, and turned only by an edge
        turned = np.flatnonzero(np.sign(step[1:]) != np.sign(step[:-1])) + 1
        assert len(turned) == pytest.approx(3000 * stride / (lane.right - lane.left), rel=0.05)
        assert (np.minimum(x[turned] - lane.left, lane.right - x[turned]) <= stride).all()
        assert (np.abs(step) == stride).mean() > 0.9


def test_distractor_strength_is_its_contrast():
    faint, strong = SpritesEnv(distractor=0.2), SpritesEnv(distractor=1.0)
    lane = np.array((40, 24, 36))
    ratio = (faint.distractor_colour - lane.astype(float)) / (strong.distractor_colour - lane.astype(float))
    np.testing.assert_allclose(ratio, 0.2, atol=0.02)


# ---- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", WORLDS[1:3])
def test_a_copied_world_has_the_same_future_and_another_seed_another(options):
    env, other = SpritesEnv(**options), SpritesEnv(**options)
    env.reset(seed=5)
    for _ in range(3):
        env.step(1)
    here = env.get_state()
    first = [env.step(a)[0] for a in (1, 2, 3, 4, 0)]
    shown = other.set_state(here)
    again = [other.step(a)[0] for a in (1, 2, 3, 4, 0)]
    assert len(shown["frames"]) == options["size"]
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["frames"], two["frames"])
        np.testing.assert_array_equal(one["state"], two["state"])
    other.set_state(here, seed=99)
    assert (other.step(1)[0]["frames"] != first[0]["frames"]).any()


# ---- episodes ----------------------------------------------------------------------------------------------------------


def test_open_field_the_reward_frame_shows_the_agent_at_the_goal_which_then_moves():
    env = SpritesEnv(length=400)
    at = columns(env)
    observation, _ = env.reset(seed=0)
    goals, rewarded = [], []
    for step in range(400):
        state = observation["state"]
        agent, goal = state[[at["agent_x"], at["agent_y"]]], state[[at["goal_x"], at["goal_y"]]]
        observation, reward, terminated, truncated, _ = env.step(env.field.oracle_action(tuple(agent), tuple(goal), 0))
        assert not terminated and truncated == (step == 399)
        state = observation["state"]
        distance = np.abs(state[[at["agent_x"], at["agent_y"]]] - state[[at["goal_x"], at["goal_y"]]]).max()
        assert (reward == 1) == (distance < env.field.ring) and reward in (0, 1)
        goals.append(tuple(state[[at["goal_x"], at["goal_y"]]]))
        rewarded.append(reward)
    for step, (before, after) in enumerate(pairwise(goals)):
        assert (before != after) == bool(rewarded[step])
    assert sum(rewarded) > 15


def run_rooms(size, policy, episodes=500):
    """Successes of a policy in rooms, checking the flags on the way."""
    env, random, successes = SpritesEnv(size=size, rooms=True), np.random.default_rng(7), 0
    observation, _ = env.reset(seed=11)
    for _ in range(episodes):
        world, steps, over = env.get_state()[0], 0, False
        assert world.budget == 2 * env.field.oracle_steps(world.agent, world.goal, world.door)
        assert (world.agent[0] < env.field.wall_left) != (world.goal[0] < env.field.wall_left)
        while not over:
            agent, goal = world.agent, world.goal
            action = {
                "random": lambda: int(random.integers(5)),
                "straight": lambda a=agent, g=goal: env.field.straight_action(a, g),
                "oracle": lambda a=agent, g=goal, d=world.door: env.field.oracle_action(a, g, d),
            }[policy]()
            observation, reward, terminated, truncated, _ = env.step(action)
            world, steps, over = env._world, steps + 1, terminated or truncated
            assert terminated == (reward == 1) and not (terminated and truncated)
            assert truncated == (steps == world.budget and not terminated)
        if policy == "oracle":
            assert terminated and steps == world.budget // 2
        successes += terminated
        observation, _ = env.reset()
    assert observation
    return successes


@pytest.mark.parametrize("size", [32, 64])
def test_rooms_need_a_plan(size):
    assert run_rooms(size, "oracle") == 500
    assert wilson(run_rooms(size, "random"), 500)[1] <= 0.20
    assert wilson(run_rooms(size, "straight"), 500)[1] <= 0.50


@pytest.mark.parametrize("size", [32, 64])
def test_the_door_is_narrow_but_passable_at_every_height(size):
    field = Field(size, True)
    assert field.door_width <= 2 * (2 * field.half + 1)
    low, high = field.door_range()
    walk = field.field.shrunk(field.half)
    for door in range(low, high + 1):
        for y in range(walk.top, walk.bottom + 1):  # whatever height the agent begins at
            assert field.oracle_steps((10, y), (size - 8, (low + high) // 2), door) < size


def test_the_oracle_walks_a_shortest_path():
    """Against breadth-first search: equal in most cases, never more than two steps longer."""
    env, longer = SpritesEnv(size=32, rooms=True), []
    env.reset(seed=2)
    for _ in range(60):
        world, field = env.get_state()[0], env.field
        distance, queue = {world.agent: 0}, deque([world.agent])
        while not field.reached(queue[0], world.goal):
            here = queue.popleft()
            for action in range(1, len(DIRECTIONS)):
                there = field.move(here, action, world.door)
                if there not in distance:
                    distance[there] = distance[here] + 1
                    queue.append(there)
        longer.append(world.budget // 2 - distance[queue[0]])
        env.reset()
    assert min(longer) >= 0 and max(longer) <= 2 and np.mean(longer) < 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 48}, "size 48"),
        ({"noise": 1.5}, "noise 1.5"),
        ({"fork_probability": -0.1}, "fork_probability"),
        ({"distractor": 0.01}, "cannot be seen"),
        ({"distractor_predictability": float("nan")}, "distractor_predictability"),
        ({"rooms": True, "length": 50}, "length cannot be set"),
        ({"length": 0}, "length 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, said):
    with pytest.raises(ExperienceError, match=said) as caught:
        SpritesEnv(**options)
    assert "\n" not in str(caught.value)


def test_stepping_where_there_is_no_episode_is_refused():
    env = SpritesEnv(length=1)
    with pytest.raises(ExperienceError, match="call reset"):
        env.step(0)
    with pytest.raises(ExperienceError, match="before reset"):
        env.get_state()
    env.reset(seed=0)
    with pytest.raises(ExperienceError, match="action 5"):
        env.step(5)
    env.step(0)
    with pytest.raises(ExperienceError, match="call reset"):
        env.step(0)
