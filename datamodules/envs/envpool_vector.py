"""Environments of EnvPool: Atari, Procgen (CoinRun ...), DeepMind Control, MiniGrid and a thousand more, stepped in C++ threads.

Needs the ``[envpool]`` extra; Procgen also needs Qt 5 (``libqt5gui5`` in Debian). An id is ``envpool:TASK`` with a task of
``envpool.list_all_envs()``: ``envpool:CartPole-v1``, ``envpool:Pong-v5``, ``envpool:CoinrunEasy-v0``, ``envpool:WalkerWalk-v1``.

What differs from other environments: EnvPool can neither save a state nor seed an episode, so a run that goes on begins
new episodes; an environment that crashes takes the whole process with it; and some tasks are the same for every seed
(half of Jumanji, much of MyoSuite, a few of Highway).
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from datamodules.envs.envpool_rehearsal import import_envpool, make_pool, why_it_fails
from datamodules.envs.generic import observation_space, one_line
from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec, reserved

PREFIX = "envpool:"
# Procgen's fifteen combinations of keys, in its order; the last six are keys that most games ignore
PROCGEN_ACTIONS = (
    *("left_down", "left", "left_up", "down", "noop", "up", "right_down", "right", "right_up"),
    *("key_d", "key_a", "key_w", "key_s", "key_q", "key_e"),
)

SIDES = ("img_height", "img_width", "render_height", "render_width")  # what ``size`` stands for
# What the data contract wants of pictures, and of buttons, where a task lets one choose. EnvPool resizes Atari and Doom by
# averaging over areas (its default): the nearest pixel would lose Pong's ball in a fifth of the frames.
DEFAULTS = {"stack_num": 1, "gray_scale": False, "use_combined_action": True, **dict.fromkeys(SIDES, 64)}
NOT_OPTIONS = (  # set here, or of no use
    *("num_envs", "batch_size", "num_threads", "thread_affinity_offset", "seed", "env_seed"),
    *("max_num_players", "base_path", "gym_reset_return_info", "reward_threshold"),
)
AT_LEAST_ONE = ("max_episode_steps", "frame_skip", "stack_num", "frame_stack", *SIDES)
SMALLEST_PICTURE = 16  # a smaller uint8 array is a grid of codes, such as MiniGrid's 7x7x3
UNBOUNDED = 1e6  # tasks without bounds on their actions declare huge ones


class Part(NamedTuple):
    """One observation key: where EnvPool keeps it in its nested dict, its shape in the contract, and if it comes as (C,H,W)."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    channels_first: bool


class Task:
    """A task with its options: checked, and described without an environment being made.

    Args:
        env_id: ``envpool:TASK``.
        options: of the task, plain JSON types. ``size`` sets the side of the pictures where they can be resized;
            ``from_pixels`` makes a MuJoCo task show pictures instead of numbers (needs OpenGL, ``libegl1`` in Debian).
            ``frame_skip`` does not shorten ``max_episode_steps``, which counts steps of the agent.

    Raises:
        ExperienceError: EnvPool is not installed; an unknown task or option; spaces that the contract cannot hold.
    """

    def __init__(self, env_id: str, options: Mapping[str, Any]) -> None:
        try:
            self._envpool = import_envpool()
        except ImportError as error:
            raise ExperienceError(f"{env_id} needs EnvPool: pip install 'lit-wm[envpool]' ({error})") from error
        self.env_id, self.name = env_id, env_id.removeprefix(PREFIX)
        if self.name not in (names := self._envpool.list_all_envs()):
            near = difflib.get_close_matches(self.name, names, 1)
            hint = f"the nearest is {PREFIX}{near[0]}" if near else "envpool.list_all_envs() names them"
            raise ExperienceError(f"EnvPool has no task '{self.name}'; {hint}")
        self.settings = self._settings(dict(options))
        if options and (cause := why_it_fails(self.name, json.dumps(self.settings))):
            raise ExperienceError(f"{env_id} does not work with {json.dumps(dict(options))}: {cause}")
        spec = self._spec(self.settings)
        if spec.config.max_num_players > 1:
            raise ExperienceError(
                f"{env_id} is a game of {spec.config.max_num_players} players: it cannot be played here"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's, about the precision of bounds
            self.parts = _parts(spec.observation_space)
            action, self.to_env = _actions(spec.action_space, env_id)
        if "distribution_mode" in spec.config._fields and action.sizes == (len(PROCGEN_ACTIONS),):
            action = replace(action, names=PROCGEN_ACTIONS)
        self.experience = ExperienceSpec({key: part.shape for key, part in self.parts.items()}, action)

    def _spec(self, settings: Mapping[str, Any]) -> Any:
        try:
            return self._envpool.make_spec(self.name, **settings)
        except Exception as error:  # C++ raises all kinds, and a missing system library is an ImportError
            raise ExperienceError(f"EnvPool cannot make '{self.name}': {one_line(error)}") from error

    def _settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments for EnvPool: the defaults that this task knows, then the options, whose names and types are checked."""
        pixels = options.pop("from_pixels", False)
        fixed = {"from_pixels": True} if _of_type("from_pixels", pixels, False, self.env_id) else {}
        known = {k: v for k, v in self._spec(fixed).config._asdict().items() if k not in NOT_OPTIONS}
        sides = [name for name in SIDES if name in known]
        if sides and "size" not in known and "size" in options:
            options = dict.fromkeys(sides, options.pop("size")) | options
        settings = fixed | {name: value for name, value in DEFAULTS.items() if name in known}
        for name, value in options.items():
            if name not in known:
                has = ", ".join([*(["size"] if sides else []), "from_pixels", *known])
                raise ExperienceError(f"{self.env_id} has no option '{name}'; it has {has}")
            settings[name] = _of_type(name, value, known[name], self.env_id)
            if name in AT_LEAST_ONE and value < 1:
                raise ExperienceError(f"{self.env_id}: {name} {value} must be at least 1")
        return settings


class EnvPoolVectorEnv(VectorEnv):
    """``num_envs`` environments of one task behind the interface of ``SturdyVectorEnv``, in NEXT_STEP mode.

    Environment ``i`` of seed ``s`` is the same whatever the number of environments, and unrelated to every environment
    of another seed: EnvPool's own ``s + i`` would make seed 1 repeat most of seed 0.

    Args:
        env_id, options: see :class:`Task`.
        num_envs: stepped side by side.
        seed: of all of them.
        threads: that EnvPool steps them in; 0 for one per environment, but no more than there are cores.

    Raises:
        ExperienceError: as :class:`Task`, or the task does not start, for example because a file of its own is missing.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, env_id: str, options: Mapping[str, Any], num_envs: int, seed: int, threads: int = 0) -> None:
        self.task = Task(env_id, options)
        self.experience = self.task.experience
        self.num_envs, self.threads = num_envs, threads
        self.deaths = 0  # there is no surviving a death in C++
        self.single_observation_space = observation_space(self.experience.observations)
        self.single_action_space = _action_space(self.experience.action)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._open(seed, 0)

    def _open(self, seed: int, resumed: int) -> None:
        self.seed, self.resumed = seed, resumed
        streams = np.random.SeedSequence([seed, resumed]).spawn(self.num_envs)
        seeds = [int(stream.generate_state(1)[0] >> 1) for stream in streams]  # EnvPool takes 31 bits
        try:
            self._pool = make_pool(
                self.task.name, self.num_envs, self.task.settings | {"seed": seeds, "num_threads": self.threads}
            )
        except Exception as error:
            raise ExperienceError(f"EnvPool cannot make '{self.task.name}': {one_line(error)}") from error
        self._over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode everywhere. The seed was given to the constructor."""
        if seed is not None or options:
            raise ExperienceError("this vector environment is seeded when it is made")
        raw, _ = self._pool.reset()
        self._over = np.zeros(self.num_envs, bool)
        return self._dressed(raw), self._info()

    def step(self, actions: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict]:
        """As Gymnasium's, with ``info["died"]``, which is always ""."""
        raw, reward, terminated, truncated, _ = self._pool.step(self.task.to_env(np.asarray(actions)))
        # Where an episode was over, EnvPool reset and ignored the action, but DeepMind Control and Meta-World still give
        # a reward there: for a first frame, to which no action has led.
        reward = np.where(self._over, 0.0, reward)
        self._over = terminated | truncated
        return self._dressed(raw), reward, terminated, truncated, self._info()

    def snapshot(self) -> list[dict[str, Any]]:
        """What keeps the episodes to come apart from those that were: the seed, and how often it was taken up again."""
        return [{"seed": self.seed, "resumed": self.resumed} for _ in range(self.num_envs)]

    def restore(
        self, snapshots: Sequence[dict[str, Any]], seen: Sequence[dict[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Begin new episodes, since EnvPool cannot go back; other ones than after the start.

        Args:
            snapshots: of each environment.
            seen: what each saw there; not to be had again.

        Returns:
            What each environment sees first.
        """
        self._pool.close()
        self._open(snapshots[0]["seed"], snapshots[0]["resumed"] + 1)
        observation, _ = self.reset()
        return [{key: value[i] for key, value in observation.items()} for i in range(self.num_envs)]

    def render(self) -> tuple[None, ...]:
        """EnvPool draws nothing that is not observed."""
        return (None,) * self.num_envs

    def close_extras(self, **kwargs: Any) -> None:
        self._pool.close()

    def _info(self) -> dict[str, Any]:
        return {"died": [""] * self.num_envs}

    def _dressed(self, raw: Any) -> dict[str, np.ndarray]:
        """EnvPool's nested observation as the contract's keys, (num_envs, ...) each."""
        observation = {}
        for key, part in self.task.parts.items():
            value = raw
            for name in part.path:
                value = value[name]
            if part.channels_first:
                value = np.moveaxis(value, 1, -1)
            dtype = np.uint8 if len(part.shape) == 3 else np.float32
            observation[key] = np.ascontiguousarray(value, dtype).reshape(self.num_envs, *part.shape)
        return observation


def _of_type(name: str, value: Any, like: Any, env_id: str) -> Any:
    """The value, if its type is that of the default; C++ would say it in a page, or take a wrong one for something else."""
    if isinstance(like, tuple) and isinstance(value, list):
        value = tuple(value)  # JSON has no tuples
    if type(value) is type(like) or (type(value) is int and type(like) is float):
        return value
    raise ExperienceError(f"{env_id}: {name} is {value!r}, expected {type(like).__name__}")


def _leaves(space: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """The spaces in a nested dict, with the names that lead to them."""
    if not isinstance(space, (Mapping, spaces.Dict)):
        yield path, space
        return
    for name, part in space.items():
        yield from _leaves(part, (*path, name))


def _parts(space: Any) -> dict[str, Part]:
    """Observation key -> part, in sorted order. Everything that is shown is kept: a picture as it is, the rest as numbers."""
    parts = {}
    for path, leaf in _leaves(space):
        shape, channels_first = (int(np.prod(leaf.shape)),), False
        picture = leaf.dtype == np.uint8 and len(leaf.shape) == 3 and sorted(leaf.shape)[1] >= SMALLEST_PICTURE
        if picture:
            channels_first = leaf.shape[0] < leaf.shape[2]
            shape = (*leaf.shape[1:], leaf.shape[0]) if channels_first else leaf.shape
        key = re.sub(r"\W", "_", "_".join(path)) or ("frames" if picture else "vector")
        key += "_" * reserved(key)  # such names mean something else in the contract
        parts[key] = Part(path, shape, channels_first)
    return dict(sorted(parts.items()))


def _actions(space: spaces.Space, env_id: str) -> tuple[ActionSpace, Callable[[np.ndarray], np.ndarray]]:
    """The contract's description of the actions, and what turns (num_envs, ...) of them into EnvPool's."""
    if isinstance(space, spaces.Discrete):
        return ActionSpace("discrete", (int(space.n),)), lambda actions: actions + int(space.start)
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        if space.dtype.kind in "iu":
            sizes = tuple((high - low + 1).astype(int).tolist())
            return ActionSpace("multi_discrete", sizes), lambda actions: actions + space.low
        if max(abs(low).max(), abs(high).max()) > UNBOUNDED:
            raise ExperienceError(f"'{env_id}': its actions have no finite bounds to rescale to [-1, 1]")
        return ActionSpace("continuous", space.shape), lambda actions: np.clip(
            low + (actions + 1.0) / 2 * (high - low), low, high
        )
    raise ExperienceError(f"'{env_id}': the action space {one_line(space)} is neither discrete nor a flat box")


def _action_space(action: ActionSpace) -> spaces.Space:
    """Gymnasium's space of the contract's actions."""
    if action.kind == "discrete":
        return spaces.Discrete(action.sizes[0])
    if action.kind == "multi_discrete":
        return spaces.MultiDiscrete(action.sizes)
    return spaces.Box(-1.0, 1.0, action.sizes, np.float32)
