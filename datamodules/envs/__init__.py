"""Environments behind one vector interface: Pong, the sprites world, and whatever Gymnasium and EnvPool know."""

from datamodules.envs.registry import describe, make, make_one, require_next_step, vector_env

__all__ = ["describe", "make", "make_one", "require_next_step", "vector_env"]
