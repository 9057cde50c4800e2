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


def make(env_id: str, num_envs: int, seed: int, **kwargs: Any) -> VectorEnv:
    """Make ``num_envs`` environments.

    Args:
        env_id: ``sprites``, ``pong``, or anything that ``gymnasium.make`` knows (``CartPole-v1``, ``my_package:MyEnv-v0``).
        num_envs: how many, stepped one after the other.
        seed: seeds the first ``reset()``; every later one goes on from there.
        kwargs: options of the environment.

    Returns:
        Observations are dicts key -> (num_envs, ...). ``envs[i]`` are the single environments.

    Raises:
        ExperienceError: an unknown environment or option, or a missing extra.
    """
    if num_envs < 1:
        raise ExperienceError(f"num_envs {num_envs} must be at least 1")
    if seed < 0:
        raise ExperienceError(f"seed {seed} must not be negative")
    return SeededVectorEnv([partial(make_one, env_id, **kwargs)] * num_envs, seed)


def vector_env(env_id: str, num_envs: int, seed: int, processes: int = 0, **kwargs: Any) -> SturdyVectorEnv:
    """Environments for an agent that learns: one may die, all can be taken up again; errors as for :func:`make`."""
    makers = [partial(make_one, env_id, **kwargs)] * num_envs
    return SturdyVectorEnv(makers, environment_seeds(seed, num_envs), processes)


def make_one(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """A single environment with an ``experience`` attribute that describes it; arguments as for :func:`make`."""
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
            f"there is no environment '{env_id}'; known are {', '.join(sorted(ENVIRONMENTS))} and the ids of Gymnasium"
            " (CartPole-v1, my_package:MyEnv-v0 ...)"
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
