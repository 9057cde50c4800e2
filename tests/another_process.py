"""A function in processes of its own, for tests that kill one or need two ranks.

They are forked from a server that has imported Lightning and done nothing else, so that none waits for the imports again.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lit_wm.cli.train"])


def start(function: Callable, *arguments: object, **options: object) -> ForkServerProcess:
    """Call ``function``, which must be importable, in another process, and do not wait for it."""
    process = context.Process(target=call, args=(function, arguments, options))
    process.start()
    return process


def call(function: Callable, arguments: tuple, options: dict) -> None:
    """Here new processes would by default be forked from the server, too; DataLoader's workers must be this one's children."""
    multiprocessing.set_start_method("fork", force=True)
    function(*arguments, **options)


def exit_code(process: ForkServerProcess, timeout: float = 300) -> int:
    """0, a positive number after an exception, or minus the signal that ended it.

    Raises:
        TimeoutError: it has not ended in ``timeout`` seconds; it is killed.
    """
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{process.name} still ran after {timeout} s")
    return process.exitcode


def as_rank(rank: int, port: int, function: Callable, arguments: tuple, options: dict) -> None:
    """Tell Lightning which rank this process is, as ``torchrun`` and Lightning's own launcher do."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    function(*arguments, **options)


def run_as_two_ranks(function: Callable, *arguments: object, **options: object) -> None:
    """Call ``function`` in two processes that Lightning takes for the ranks of one run; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(as_rank, rank, port, function, arguments, options) for rank in (0, 1)]
    assert [exit_code(process) for process in processes] == [0, 0]
