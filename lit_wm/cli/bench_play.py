"""``lit-wm bench genie --part sample``: what one more frame costs in a world that is being played."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lit_wm.cli.bench_models import Subject
from lit_wm.contract import at
from lit_wm.errors import UserError
from lit_wm.genie.play_session import PlaySession


def measure_play(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """CPU and wall milliseconds of the frame that fills the window, and the mean over frames of unending play.

    Before the measured frame, all frames but the last two have been played and stand in the cache; so it reads one frame,
    refines one and decodes one. In unending play the window moves every W/4 frames and what is left of it is read anew.
    """
    if options.length < 4:
        raise UserError(
            f"bench genie --part sample: --length {options.length} leaves no past to play from, give 4 or more"
        )
    model, batch = subject.model.eval(), subject.batch
    prompt = {key: value[:, : options.length - 2] for key, value in batch.items()}
    session = PlaySession(model, at(model.observe(prompt), options.length - 3))
    generator = torch.Generator().manual_seed(0)
    action = torch.zeros_like(model.infer_actions(prompt)[:, 0])
    session.step(action, generator=generator)
    runs = [timed(lambda: session.branch().step(action, generator=generator)) for _ in range(options.runs + 1)][1:]
    long = session.branch()
    long.step(action, generator=generator)
    period = 2 * max(options.length // 4, 1)
    unending = [timed(lambda: long.step(action, generator=generator))[0] for _ in range(period)]
    cpu, wall = ([run[i] for run in runs] for i in (0, 1))
    dynamics = model.dynamics
    small = dynamics.settings.kind == "autoregressive"
    steps = f"{dynamics.tokens} tokens one by one" if small else f"{dynamics.settings.sampling_steps} steps"
    return {
        "name": f"{subject.name}, {steps} a frame",
        "threads": options.threads,
        "parameters": subject.parameters,
        "cpu_ms_median": statistics.median(cpu),
        "cpu_ms_min": min(cpu),
        "cpu_ms_runs": cpu,
        "wall_ms_median": statistics.median(wall),
        "wall_ms_runs": wall,
        "cpu_ms_unending": statistics.mean(unending),
    }


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall milliseconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)
