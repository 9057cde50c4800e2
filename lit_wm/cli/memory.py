"""How the process asks the system for memory: kept once had, since a training step needs the same amounts again and again."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed tensors for the next ones instead of giving them back to the system.

    By default every tensor above 32 MiB is mapped anew, and the kernel clears each of its pages on first touch: a third of
    the CPU time of a Dreamer step on pictures. The price is that the process stays as large as it once was.

    Returns:
        Whether the C library took the settings; others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, 1 << 30) and mallopt(M_TRIM_THRESHOLD, -1))
