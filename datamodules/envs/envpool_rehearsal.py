"""A first step in EnvPool, taken in a process that may die of it.

EnvPool is C++ and runs in this process. Many an option that makes no sense (a stack of no pictures, a grid of one cell), and
a machine that cannot draw, end the whole process instead of raising an exception. So what is not known to work is tried
in a child process first, and its last words become an error that can be read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


def import_envpool() -> Any:
    """The package ``envpool``.

    MuJoCo draws with whatever OpenGL the process holds. EnvPool 1.2.5 brings none that works, and once it is imported it is
    too late for another: the system's is loaded before.

    Raises:
        ImportError: EnvPool is not installed.
    """
    with contextlib.suppress(OSError):  # there is none: whoever asks for pictures will hear it from MuJoCo
        ctypes.CDLL("libEGL.so.1", ctypes.RTLD_GLOBAL)
    import envpool

    return envpool


def make_pool(task: str, num_envs: int, settings: Mapping[str, Any]) -> Any:
    """EnvPool's own vector environment.

    Args:
        task: as ``envpool.list_all_envs()`` names it.
        num_envs: how many environments.
        settings: arguments of ``envpool.make_gymnasium``.
    """
    pool = import_envpool().make_gymnasium(task, num_envs=num_envs, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Gymnasium's, about the precision of bounds; the pool keeps the space it makes here
        _ = pool.observation_space
    return pool


@lru_cache(maxsize=64)
def why_it_fails(task: str, settings_json: str) -> str:
    """Reset and step a task in a child process.

    Returns:
        One line that says how it failed; "" if it worked.
    """
    command = [
        sys.executable,
        "-P",
        __file__,
        task,
        settings_json,
    ]  # -P: the files beside this one are not modules to find
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # A crash dump begins with its cause, an exception and MuJoCo's own complaint end with it.
    fatal = [line for line in said if "Check failed" in line or "what():" in line]
    cause = (fatal or said[-1:] or ["it said nothing"])[0]
    return f"{' '.join(cause.split())[:300]} (exit code {done.returncode})"


def main(task: str, settings_json: str) -> None:
    """What the child process does."""
    import numpy as np

    warnings.simplefilter("ignore")
    try:
        pool = make_pool(task, 1, json.loads(settings_json))
        pool.reset()
        pool.step(np.stack([pool.action_space.sample()]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
