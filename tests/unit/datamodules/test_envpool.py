"""EnvPool behind the project's interface: alignment, seeds, going on, and one line for whatever cannot work."""

from __future__ import annotations

import importlib.util
import json
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from datamodules.collector import Collector, row_layout
from datamodules.envs import describe, make, make_one, require_next_step, vector_env
from datamodules.envs.envpool_vector import EnvPoolVectorEnv, Task, _actions, _parts
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ActionSpace, ExperienceError, check_episode
from datamodules.policies import make_policy
from datamodules.record import collect, record
from datamodules.replay_memory import Replay
from datamodules.shards import iter_episodes
from lit_wm.cli import record as record_cli

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="needs EnvPool: pip install 'lit-wm[envpool]'"
)
TASKS = {  # task: observations and actions
    "CartPole-v1": ({"vector": (4,)}, ActionSpace("discrete", (2,))),
    "Pong-v5": ({"frames": (64, 64, 3)}, ActionSpace("discrete", (6,))),
    "WalkerWalk-v1": (
        {"height": (1,), "orientations": (14,), "velocity": (9,)},
        ActionSpace("continuous", (6,)),
    ),
    "MiniGrid-DoorKey-5x5-v0": (
        {"direction": (1,), "image": (147,), "mission": (96,)},
        ActionSpace("discrete", (7,)),
    ),
    "CarRacing-v3": ({"frames": (96, 96, 3)}, ActionSpace("continuous", (3,))),
    "Jumanji/Tetris-v0": (
        {"action_mask": (40,), "grid": (100,), "step_count": (1,), "tetromino": (16,)},
        ActionSpace("multi_discrete", (4, 10)),
    ),
}


def envpool(task, num_envs=2, seed=0, /, **options):
    return vector_env(f"envpool:{task}", num_envs, seed, **options)


def played(env, steps):
    """What ``reset()`` and then each of ``steps`` brought, with actions that depend on nothing but the step."""
    env.single_action_space.seed(0)
    rows = [env.reset()[0]]
    for _ in range(steps):
        rows.append(env.step(np.stack([env.single_action_space.sample()] * env.num_envs))[0])
    env.close()
    return {key: np.stack([row[key] for row in rows], 1) for key in rows[0]}


# --- what is delivered


@needs_envpool
@pytest.mark.parametrize("task", TASKS)
def test_what_is_delivered_is_what_is_described(task):
    observations, action = TASKS[task]
    spec = describe(f"envpool:{task}")
    assert (spec.observations, spec.action, spec.factors) == (observations, action, ())
    env = make(f"envpool:{task}", 3, 0)
    require_next_step(env)
    assert env.experience == spec and env.num_envs == 3
    env.action_space.seed(0)
    seen, _ = env.reset()
    for _ in range(3):
        assert {key: value.shape[1:] for key, value in seen.items()} == spec.observations
        assert seen in env.observation_space  # shapes, dtypes and bounds
        seen, reward, *_, info = env.step(env.action_space.sample())
        assert reward.shape == (3,) and info["died"] == [""] * 3
    env.close()
    env.close()


@needs_envpool
def test_atari_pictures_are_averaged_over_areas_and_the_right_way_up():
    import envpool as pool

    def weights(n, m=64):  # how much of each of n pixels lies under each of m
        edges = np.arange(n + 1) * m / n
        return np.maximum(
            0, np.minimum.outer(np.arange(1, m + 1), edges[1:]) - np.maximum.outer(np.arange(m), edges[:-1])
        )

    env = envpool("Pong-v5", 1)
    (seed,) = env._pool.config["env_seed"]
    bare = pool.make_gymnasium("Pong-v5", num_envs=1, seed=[seed], render_mode="rgb_array")
    bare.reset()
    (screen,) = bare.render()
    averaged = np.einsum("ih,hwc,jw->ijc", weights(210), screen.astype(float), weights(160))
    shown = env.reset()[0]["frames"][0]
    assert np.abs(averaged - shown).max() <= 0.51 and shown.std() > 10


@needs_envpool
@pytest.mark.parametrize(
    ("task", "low", "high"),
    [("Pendulum-v1", [-2], [2]), ("CarRacing-v3", [-1, 0, 0], [1, 1, 1]), ("QuadrupedWalk-v1", [-1, -1, -1.1], None)],
)
def test_continuous_actions_are_rescaled_to_the_bounds(task, low, high):
    made = Task(f"envpool:{task}", {})
    width = made.experience.action.sizes[0]
    ends = made.to_env(np.array([[-1.0] * width, [1.0] * width], np.float32))
    if high is None:  # many joints, of which the bounds differ
        assert ends.min() == -1 and ends.max() == pytest.approx(1.1)
    else:
        np.testing.assert_allclose(ends, [low, high])


@needs_envpool
def test_an_action_leads_to_the_next_row():
    """Gymnasium's cart, put where EnvPool's is, must go where that goes."""
    env, cart = envpool("CartPole-v1", 1, 5), gymnasium.make("CartPole-v1").unwrapped
    cart.reset()
    seen = env.reset()[0]["vector"][0]
    for action in np.random.default_rng(0).integers(0, 2, 60):
        cart.state = seen.astype(float)
        expected, *_ = cart.step(int(action))
        observation, _, terminated, _, _ = env.step([action])
        seen = observation["vector"][0]
        np.testing.assert_allclose(seen, expected, atol=1e-5)
        if terminated[0]:
            cart.reset()
            seen = env.step([action])[0]["vector"][0]


# --- how time is aligned


@needs_envpool
def test_the_final_frame_comes_in_line_and_then_a_first_frame_without_reward():
    env = envpool("CartPole-v1", 4, max_episode_steps=12)
    seen, _ = env.reset()
    over, ends = np.zeros(4, bool), 0
    for _ in range(60):
        before = seen["vector"]
        seen, reward, terminated, truncated, _ = env.step(np.ones(4, int))
        begun = (np.abs(seen["vector"]) <= 0.05).all(1)  # where the cart starts
        np.testing.assert_array_equal(begun, over)
        np.testing.assert_array_equal(reward, np.where(over, 0.0, 1.0))
        assert not (terminated | truncated)[over].any()
        # The frame that is over is the fallen pole's own, one step from the one before.
        assert (np.abs(seen["vector"] - before)[~over].max(1) < 1).all()
        over = terminated | truncated
        ends += over.sum()
    assert ends > 10


@needs_envpool
@pytest.mark.parametrize("task", ["WalkerWalk-v1", "MetaWorld/Assembly-v3"])
def test_a_first_frame_has_no_reward_even_where_envpool_gives_one(task):
    env = envpool(task, 4, max_episode_steps=5)
    raw = []
    step = env._pool.step
    env._pool.step = lambda actions: raw.append(step(actions)) or raw[-1]
    env.action_space.seed(0)
    env.reset()
    rewards = [env.step(env.action_space.sample())[1] for _ in range(12)]
    assert [bool(each[3].all()) for each in raw] == [i % 6 == 4 for i in range(12)]  # truncated after five steps
    assert raw[5][1].any(), "EnvPool no longer rewards the first frame"
    assert not rewards[5].any() and not rewards[11].any() and rewards[4].any()


@needs_envpool
@pytest.mark.parametrize("limit", [None, 30])
def test_a_time_limit_truncates_and_a_fall_terminates(limit):
    env = envpool("CartPole-v1", 3, **({} if limit is None else {"max_episode_steps": limit}))
    seen, _ = env.reset()
    for t in range(1, 501):
        balance = (seen["vector"] @ [0.01, 0.1, 1.0, 0.5] > 0).astype(int)
        balance[2] = 0  # the third cart is pushed to one side until it falls
        seen, _, terminated, truncated, _ = env.step(balance)
        assert not terminated[:2].any() and not truncated[2]
        assert truncated[:2].all() == (t == (limit or 500))
        if truncated.any():
            break
    assert t == (limit or 500)


@needs_envpool
def test_a_fall_is_terminal():
    env = envpool("CartPole-v1", 3)
    env.reset()
    ends = [env.step(np.zeros(3, int))[2:4] for _ in range(11)]
    assert all(any(terminated[i] for terminated, _ in ends) for i in range(3))
    assert not any(truncated.any() for _, truncated in ends)


@needs_envpool
@pytest.mark.parametrize(("task", "limit"), [("CartPole-v1", 15), ("WalkerWalk-v1", 9), ("MiniGrid-Empty-5x5-v0", 12)])
def test_what_is_collected_is_what_the_contract_asks(task, limit):
    env = envpool(task, 3, max_episode_steps=limit)
    policy = make_policy("random", "envpool", env.experience, 0)
    recorded = list(collect(env, env.experience, policy, 200))
    for episode in recorded:
        assert check_episode(episode, env.experience) <= limit + 1
    env.close()

    env, episodes = envpool(task, 3, max_episode_steps=limit), []
    replay = Replay(row_layout(env.experience), {}, 3, 40, 1000, online=False)
    collector = Collector(env, replay, episodes.append)
    for _ in range(60):
        collector.step(policy)
    assert len(episodes) > 6 and collector.env_steps == 180
    for episode, same in zip(episodes, recorded, strict=False):
        assert check_episode(episode, env.experience) == len(same["reward"])
        assert all(np.array_equal(episode[key], same[key]) for key in same)


# --- seeds, and going on


@needs_envpool
@pytest.mark.parametrize("task", ["CartPole-v1", "WalkerWalk-v1", "MiniGrid-DoorKey-5x5-v0"])
def test_an_environment_depends_on_the_seed_and_its_number_alone(task):
    three, alone = played(envpool(task, 3, 4, processes=2), 60), played(envpool(task, 1, 4), 60)
    for key, value in alone.items():
        np.testing.assert_array_equal(value[0], three[key][0])
    other = played(envpool(task, 3, 5), 60)
    lives = {b"".join(value[i].tobytes() for value in each.values()) for each in (three, other) for i in range(3)}
    assert len(lives) == 6


@needs_envpool
def test_seeds_share_no_environment():
    starts = [tuple(start) for seed in range(4) for start in envpool("CartPole-v1", 8, seed).reset()[0]["vector"]]
    assert len(set(starts)) == 32


@needs_envpool
def test_a_run_that_goes_on_begins_episodes_that_it_has_not_seen():
    def after(snapshots, seen):
        env = envpool("CartPole-v1", 3, 99)
        begun = np.stack([first["vector"] for first in env.restore(snapshots, seen)])
        assert (np.abs(begun) <= 0.05).all(), "an episode begins"
        moved, reward, *_ = env.step(np.ones(3, int))
        assert reward.all() and (moved["vector"][:, 1] > begun[:, 1]).all()
        return begun, env.snapshot()

    env = envpool("CartPole-v1", 3)
    first = env.reset()[0]["vector"]
    for _ in range(5):
        observation, *_ = env.step(np.zeros(3, int))
    snapshots = json.loads(json.dumps(env.snapshot()))
    seen = [{"vector": vector} for vector in observation["vector"]]
    second, later = after(snapshots, seen)
    third, _ = after(later, seen)
    np.testing.assert_array_equal(second, after(snapshots, seen)[0])
    assert len({tuple(start) for starts in (first, second, third) for start in starts}) == 9


# --- recording


@needs_envpool
def test_the_same_arguments_record_the_same_bytes(tmp_path, capsys):
    words = ["--env", "envpool:CartPole-v1", "--policy", "random", "--steps", "2000"]
    for name in ("a", "b"):
        record_cli.main([*words, "--out", str(tmp_path / name)])
    assert "2,000 steps of envpool:CartPole-v1" in capsys.readouterr().out
    a, b = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b and len(a) > 1


@needs_envpool
def test_pictures_are_recorded_in_the_size_that_was_asked_for(tmp_path):
    record("envpool:Pong-v5", tmp_path / "r", 40, num_envs=2, env_args={"size": 32}, progress=False)
    assert {rows["frames"].shape[1:] for rows in iter_episodes(tmp_path / "r")} == {(32, 32, 3)}


def either(task, said, **options):
    """Two of a task; or skip, if a system library is missing and a line says so."""
    try:
        return envpool(task, **options)
    except ExperienceError as error:
        assert said in str(error) and "\n" not in str(error)
        pytest.skip(str(error))


@needs_envpool
def test_coinrun():
    env = either("CoinrunEasy-v0", "Qt")
    names = env.experience.action.names
    assert env.experience.action.sizes == (15,) and (names[1], names[4], names[7]) == ("left", "noop", "right")
    frames = played(env, 20)["frames"]
    assert frames.shape == (2, 21, 64, 64, 3) and (frames[0] != frames[1]).any()


@needs_envpool
def test_pictures_of_mujoco():
    env = either("WalkerWalk-v1", "exit code", from_pixels=True)
    assert env.experience.observations == {"frames": (64, 64, 3)}
    frames = played(env, 3)["frames"]
    assert frames.std() > 5 and (frames[0, 0] != frames[0, 3]).any()


# --- the translation of spaces


def test_observation_keys():
    picture, grid = spaces.Box(0, 255, (3, 64, 48), np.uint8), spaces.Box(0, 255, (7, 7, 3), np.uint8)
    number = spaces.Box(-1, 1, (), np.float64)
    assert _parts(picture) == {"frames": (((), (64, 48, 3), True))}
    assert _parts(spaces.Box(0, 255, (96, 64, 4), np.uint8)) == {"frames": ((), (96, 64, 4), False)}
    assert _parts(grid) == {"vector": ((), (147,), False)}
    nested = spaces.Dict({"state": number, "goal": spaces.Dict({"the kettle": spaces.Box(-1, 1, (2, 3))})})
    assert _parts(nested) == {
        "goal_the_kettle": (("goal", "the kettle"), (6,), False),
        "state_": (("state",), (1,), False),  # ``state`` is the ground truth in the contract
    }


def test_actions():
    action, to_env = _actions(spaces.Discrete(3, start=5), "x")
    assert action == ActionSpace("discrete", (3,)) and to_env(np.array([0, 2])).tolist() == [5, 7]
    action, to_env = _actions(spaces.Box(np.array([1, 0]), np.array([3, 9]), dtype=np.int32), "x")
    assert action == ActionSpace("multi_discrete", (3, 10)) and to_env(np.array([[0, 9]])).tolist() == [[1, 9]]
    for space in (spaces.Box(0, 1.7e308, (2,), np.float64), spaces.Box(-1e10, 1e10, (2,))):
        with pytest.raises(ExperienceError, match="'x': its actions have no finite bounds"):
            _actions(space, "x")
    with pytest.raises(ExperienceError, match="neither discrete nor a flat box"):
        _actions(spaces.Box(-1, 1, (2, 2)), "x")


# --- what cannot work is one line


@needs_envpool
@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("Pong-v4", {}, "no task 'Pong-v4'; the nearest is envpool:Pong-v5"),
        ("", {}, "no task ''; envpool.list_all_envs"),
        ("Go9x9-v1", {}, "a game of 2 players"),
        ("LqrLqr21-v1", {}, "no finite bounds"),
        ("CartPole-v1", {"size": 32}, "no option 'size'; it has from_pixels, max_episode_steps"),
        ("CartPole-v1", {"from_pixels": True}, "only supported for MuJoCo"),
        ("CartPole-v1", {"max_episode_steps": 0}, "max_episode_steps 0 must be at least 1"),
        ("Pong-v5", {"num_threads": 2}, "no option 'num_threads'; it has size, from_pixels"),
        ("Pong-v5", {"threads": 2}, "no option 'threads'"),
        ("Pong-v5", {"frame_skip": "x"}, "frame_skip is 'x', expected int"),
        ("Pong-v5", {"gray_scale": 1}, "gray_scale is 1, expected bool"),
        ("Pong-v5", {"size": 0}, "img_height 0 must be at least 1"),
        # These end a process with EnvPool in it: a segmentation fault, a failed check, an exit.
        ("Pong-v5", {"noop_max": 0}, r'does not work with {"noop_max": 0}: .*exit code'),
        ("Pong-v5", {"task": "no_game"}, "does not work with .* not found.*exit code"),
        ("MiniGrid-Empty-5x5-v0", {"size": 1}, "does not work with .*Check failed.*exit code"),
        ("WalkerWalk-v1", {"task_name": "fly"}, "Unknown task_name fly"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(task, options, said):
    with pytest.raises(ExperienceError, match=said) as caught:
        envpool(task, **options)
    assert "\n" not in str(caught.value)


def test_without_envpool_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    for attempt in (make, vector_env):
        with pytest.raises(ExperienceError, match=r"envpool:Pong-v5 needs EnvPool: pip install 'lit-wm\[envpool\]'"):
            attempt("envpool:Pong-v5", 1, 0)
    with pytest.raises(ExperienceError, match=r"\[envpool\]"):
        describe("envpool:Pong-v5")


def test_the_factory_makes_what_can_be_taken_up_again(monkeypatch):
    env = vector_env("sprites", 2, 0, noise=0.5)
    assert isinstance(env, SturdyVectorEnv) and env.experience == describe("sprites", noise=0.5)
    assert env.reset()[0]["frames"].shape == (2, 64, 64, 3)
    env.close()
    made = []
    monkeypatch.setattr(EnvPoolVectorEnv, "__init__", lambda self, *arguments: made.append(arguments))
    vector_env("envpool:Pong-v5", 4, 7, 2, size=32)
    assert made == [("envpool:Pong-v5", {"size": 32}, 4, 7, 2)]
    for arguments, said in (((0, 0), "num_envs 0"), ((1, -1), "seed -1"), ((1, 0, -1), "processes -1")):
        with pytest.raises(ExperienceError, match=said):
            vector_env("sprites", *arguments)
    with pytest.raises(ExperienceError, match="no single environments"):
        make_one("envpool:Pong-v5")
    with pytest.raises(ExperienceError, match="sprites has no option 'seed'"):
        make("sprites", 1, 0, **{"seed": 3})
