"""Any Gymnasium environment, your own included, in the data contract's clothes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from datamodules.experience import ActionSpace, ExperienceError, ExperienceSpec


class GymnasiumEnv(gymnasium.Wrapper):
    """A Gymnasium environment whose observations are a dict of the data contract.

    A uint8 picture becomes ``frames``, a float box ``vector`` (flattened to one axis); a dict of such keeps its keys.
    Continuous actions are rescaled to [-1, 1] and discrete ones counted from 0. There is no ``state``, unless the
    environment names its truth: an attribute ``experience`` (an ``ExperienceSpec``) says that its observations
    already are a dict of the contract, with a ``state`` of those factors where it has any.

    Args:
        env_id: what ``gymnasium.make`` takes, ``CartPole-v1`` or ``my_package:MyEnv-v0``.
        kwargs: passed to ``gymnasium.make``.

    Raises:
        ExperienceError: an unknown id or argument, or spaces that the contract cannot hold; in ``reset`` and ``step``,
            whatever the environment itself raises.
    """

    def __init__(self, env_id: str, **kwargs: Any) -> None:
        try:
            env = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
        except Exception as error:  # whatever an environment raises when it is made
            raise ExperienceError(f"gymnasium cannot make '{env_id}': {one_line(error)}") from error
        env, action = _with_actions(env, env_id)
        super().__init__(env)
        self._named = f"'{env_id}' with {', '.join(f'{key}={value}' for key, value in kwargs.items()) or 'no options'}"
        own = getattr(env.unwrapped, "experience", None)
        if own is None:
            self._parts = _parts(env.observation_space, env_id)
            observations = {key: shape for key, (shape, _) in self._parts.items()}
            own = ExperienceSpec(observations, action)
        else:
            self._parts = {key: (shape, _dtype(shape)) for key, shape in own.observations.items()}
            if own.factors:
                self._parts["state"] = ((len(own.factors),), np.dtype(np.float32))
        self.experience: ExperienceSpec = own
        self._is_dict = isinstance(env.observation_space, spaces.Dict)
        self.observation_space = observation_space({key: shape for key, (shape, _) in self._parts.items()})

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict]:
        with self._failing_in("reset()"):
            observation, _ = self.env.reset(**kwargs)
            dressed = self._dressed(observation)
        return dressed, {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        with self._failing_in("step()"):
            observation, reward, terminated, truncated, _ = self.env.step(action)
            dressed = self._dressed(observation)
        return dressed, float(reward), bool(terminated), bool(truncated), {}

    @contextmanager
    def _failing_in(self, where: str) -> Iterator[None]:
        """Many options are read only when the environment runs: say which one failed, and what it was given."""
        try:
            yield
        except ExperienceError:
            raise
        except Exception as error:  # whatever an environment raises
            raise ExperienceError(
                f"{self._named} failed in {where}: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _dressed(self, observation: Any) -> dict[str, np.ndarray]:
        parts = observation if self._is_dict else {next(iter(self._parts)): observation}
        dressed = {}
        for key, (shape, dtype) in self._parts.items():
            if key not in parts:
                raise ExperienceError(f"the observation holds no '{key}' but {', '.join(map(str, parts))}")
            value = np.asarray(parts[key])
            if (value.dtype == np.uint8) != (dtype == np.uint8) or value.size != np.prod(shape):
                raise ExperienceError(f"'{key}' came as {value.dtype} {value.shape}, expected {dtype} {shape}")
            dressed[key] = value.reshape(shape).astype(dtype)
        return dressed


def _with_actions(env: gymnasium.Env, env_id: str) -> tuple[gymnasium.Env, ActionSpace]:
    """The environment with its actions in the contract's ranges, and their description."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        if start:
            env = gymnasium.wrappers.TransformAction(env, lambda a: a + start, spaces.Discrete(int(space.n)))
        return env, ActionSpace("discrete", (int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return env, ActionSpace("multi_discrete", tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ExperienceError(f"'{env_id}': its actions have no finite bounds to rescale to [-1, 1]")
        env = gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        return env, ActionSpace("continuous", space.shape)
    raise ExperienceError(f"'{env_id}': the action space {space} is neither discrete, multi-discrete nor a flat box")


def _parts(space: spaces.Space, env_id: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Observation key -> shape and dtype."""
    named = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    parts = {}
    for name, part in named.items():
        if not isinstance(part, spaces.Box):
            raise ExperienceError(f"'{env_id}': the observation {part} is not a box; write a wrapper that makes it one")
        picture = part.dtype == np.uint8 and len(part.shape) in (2, 3)
        if part.dtype == np.uint8 and not picture:
            raise ExperienceError(f"'{env_id}': the uint8 observation of shape {part.shape} is not a picture (H,W,C)")
        shape = (*part.shape, 1)[:3] if picture else (int(np.prod(part.shape)),)
        parts[name or ("frames" if picture else "vector")] = (shape, _dtype(shape))
    return parts


def _dtype(shape: tuple[int, ...]) -> np.dtype:
    return np.dtype(np.uint8 if len(shape) == 3 else np.float32)


def observation_space(shapes: Mapping[str, tuple[int, ...]]) -> spaces.Dict:
    """Gymnasium's space of the contract's observations: (H,W,C) are uint8 pictures, (D,) are float32 vectors."""
    return spaces.Dict(
        {
            key: spaces.Box(0, 255, shape, np.uint8)
            if len(shape) == 3
            else spaces.Box(-np.inf, np.inf, shape, np.float32)
            for key, shape in shapes.items()
        }
    )


def one_line(error: object) -> str:
    """What it says, without line breaks."""
    return " ".join(str(error).split())
