"""Environments by name, all behind one interface: a ``gymnasium.vector.VectorEnv`` in NEXT_STEP autoreset mode.

Observations are dicts of the data contract's keys: ``frames`` or ``vector``, and ``state`` where the truth is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, get_args, get_type_hints

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from datamodules.envs.envpool_vector import PREFIX, EnvPoolVectorEnv, Task
from datamodules.envs.generic import GymnasiumEnv
from datamodules.envs.sprites import SpritesEnv
from datamodules.envs.workers import SturdyVectorEnv
from datamodules.experience import ExperienceError, ExperienceSpec


def _pong() -> Callable[..., gymnasium.Env]:
    from datamodules.envs.pong import PongEnv  # ale-py is an extra: imported only where Pong is asked for

    return PongEnv


ENVIRONMENTS: dict[str, Callable[[], Callable[..., gymnasium.Env]]] = {"pong": _pong, "sprites": lambda: SpritesEnv}


class SeededVectorEnv(SyncVectorEnv):
    """``SyncVectorEnv`` whose first ``reset()`` uses the seeds it was made with.

    Environment ``i`` of seed ``s`` is the same whatever the number of environments, and unrelated to every
    environment of another seed (Gymnasium's own ``s + i`` would make seed 1 repeat most of seed 0).
    """

    def __init__(self, env_fns: list[Callable[[], gymnasium.Env]], seed: int) -> None:
        super().__init__(env_fns, autoreset_mode=AutoresetMode.NEXT_STEP)
        self.experience: ExperienceSpec = self.envs[0].experience
        self._seeds: list[int] | None = environment_seeds(seed, len(env_fns))

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is None:
            seed, self._seeds = self._seeds, None
        elif isinstance(seed, int):
            seed, self._seeds = environment_seeds(seed, self.num_envs), None
        return super().reset(seed=seed, options=options)


def environment_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed for each environment, from independent streams."""
    return [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(num_envs)]


def make(env_id: str, num_envs: int, seed: int, /, **kwargs: Any) -> VectorEnv:
    """Make ``num_envs`` environments to be recorded: one seed for all the episodes of each.

    Args:
        env_id: ``sprites``, ``pong``, anything that ``gymnasium.make`` knows (``CartPole-v1``, ``my_package:MyEnv-v0``), or
            ``envpool:TASK`` (see :mod:`datamodules.envs.envpool_vector`).
        num_envs: how many, stepped one after the other, those of EnvPool in threads.
        seed: seeds the first ``reset()``; every later one goes on from there.
        kwargs: options of the environment.

    Returns:
        Observations are dicts key -> (num_envs, ...); ``experience`` describes them.

    Raises:
        ExperienceError: an unknown environment or option, or a missing extra.
    """
    _check_numbers(num_envs, seed)
    if env_id.startswith(PREFIX):
        return EnvPoolVectorEnv(env_id, kwargs, num_envs, seed)
    return SeededVectorEnv([partial(make_one, env_id, **kwargs)] * num_envs, seed)


def vector_env(
    env_id: str, num_envs: int, seed: int, processes: int = 0, **env_args: Any
) -> SturdyVectorEnv | EnvPoolVectorEnv:
    """Make ``num_envs`` environments to be learned in: one seed for each episode, so that they can be taken up again.

    Args:
        env_id, num_envs, seed: as for :func:`make`.
        processes: how many to spread them over, 0 for this one. EnvPool takes as many threads, 0 for one per core.
        env_args: options of the environment.

    Raises:
        ExperienceError: as for :func:`make`.
    """
    _check_numbers(num_envs, seed)
    if processes < 0:
        raise ExperienceError(f"processes {processes} must not be negative")
    if env_id.startswith(PREFIX):
        return EnvPoolVectorEnv(env_id, env_args, num_envs, seed, processes)
    return SturdyVectorEnv(
        [partial(make_one, env_id, **env_args)] * num_envs, environment_seeds(seed, num_envs), processes
    )


def _check_numbers(num_envs: int, seed: int) -> None:
    if num_envs < 1:
        raise ExperienceError(f"num_envs {num_envs} must be at least 1")
    if seed < 0:
        raise ExperienceError(f"seed {seed} must not be negative")


def make_one(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """A single environment with an ``experience`` attribute that describes it; arguments as for :func:`make`."""
    if env_id.startswith(PREFIX):
        raise ExperienceError(f"EnvPool has no single environments: make '{env_id}' as a vector of one")
    if env_id in ENVIRONMENTS:
        maker = ENVIRONMENTS[env_id]()
        known = inspect.signature(maker).parameters
        if unknown := sorted(kwargs.keys() - known.keys()):
            raise ExperienceError(f"{env_id} has no option '{unknown[0]}'; it has {', '.join(known)}")
        _check_types(env_id, maker, kwargs)
        return maker(**kwargs)
    module, colon, name = env_id.partition(":")
    well_formed = module and name and ":" not in name if colon else env_id in gymnasium.registry
    if not well_formed:
        raise ExperienceError(
            f"there is no environment '{env_id}'; known are {', '.join(sorted(ENVIRONMENTS))}, the ids of Gymnasium"
            " (CartPole-v1, my_package:MyEnv-v0 ...) and of EnvPool (envpool:Pong-v5 ...)"
        )
    return GymnasiumEnv(env_id, **kwargs)


def _check_types(env_id: str, maker: Callable[..., gymnasium.Env], kwargs: dict[str, Any]) -> None:
    """Options come from a command line: refuse ``size=big`` before it is compared with a number."""
    hints = get_type_hints(maker.__init__)
    for name, value in kwargs.items():
        allowed = get_args(hints[name]) or (hints[name],)
        fits = type(value) in allowed or (type(value) is int and float in allowed)
        if not fits:
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ExperienceError(f"{env_id}: {name} is {value!r}, expected {wanted}")


def describe(env_id: str, **kwargs: Any) -> ExperienceSpec:
    """Shapes and names of what an environment delivers, without stepping it; arguments and errors as for :func:`make`."""
    if env_id.startswith(PREFIX):
        return Task(env_id, kwargs).experience
    env = make_one(env_id, **kwargs)
    env.close()
    return env.experience


def require_next_step(env: VectorEnv) -> None:
    """Refuse a vector environment whose autoreset would break the alignment of rewards and frames.

    Raises:
        ExperienceError: any mode but NEXT_STEP.
    """
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.NEXT_STEP:
        raise ExperienceError(f"the vector environment resets in mode {mode}; make it with AutoresetMode.NEXT_STEP")
