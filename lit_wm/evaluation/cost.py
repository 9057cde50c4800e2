"""What a model costs: parameters, CPU time of one training step, imagined frames per second."""

from __future__ import annotations

import copy
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lit_wm.contract import Batch, State, WorldModelContract, map_state
from lit_wm.errors import UserError
from lit_wm.evaluation.statistics import Number, not_applicable

SECONDS_PER_SPEED = 3.0  # after that much time a speed has been measured often enough


def parameter_numbers(model: WorldModelContract) -> dict[str, Number]:
    """All parameters, and those that training changes (an EMA target counts among the first only)."""
    if not hasattr(model, "parameters"):
        none = not_applicable("not a torch module")
        return {"cost/parameters": none, "cost/parameters_trained": none}
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {
        "cost/parameters": Number(float(sum(size for size, _ in sizes)), 1),
        "cost/parameters_trained": Number(float(sum(size for size, learns in sizes if learns)), 1),
    }


class _CpuClock(Callback):
    """Process CPU time of every training step, from the batch's arrival to after the optimizer."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begin = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.milliseconds.append(1000 * (time.process_time() - self.begin))


def train_step_ms(model: WorldModelContract, batch: Batch | None, at_step: int, repeats: int) -> Number:
    """Median of :func:`train_step_runs`; n/a with the reason where there is nothing to measure, or it cannot train."""
    if not isinstance(model, LightningModule) or batch is None:
        return not_applicable("no training step to measure" if batch is None else "not a LightningModule")
    try:
        return Number(statistics.median(train_step_runs(model, batch, at_step, repeats)), repeats)
    except UserError as error:
        return not_applicable(str(error))


def train_step_runs(
    model: LightningModule, batch: Batch, at_step: int, repeats: int, precision: str = "32-true"
) -> list[float]:
    """CPU milliseconds (all threads together) of every measured training step by the real Trainer, on a copy of the model.

    Args:
        model: what is trained, with all that its hooks do after the optimizer's step.
        batch: a training batch of the run's own shape.
        at_step: the update it pretends to be at: a route that trains its parts in turn costs differently in each phase.
        repeats: measured steps, after one that is not counted.
        precision: the Trainer's.

    Raises:
        UserError: the model refuses to train so.
    """
    clock = _CpuClock()
    with _quiet():
        trainer = Trainer(
            max_steps=at_step + repeats + 1,
            accelerator="cpu",
            devices=1,
            precision=precision,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = at_step
        trainer.fit(copy.deepcopy(model).cpu().train(), _Repeat(batch, repeats + 1))
    return clock.milliseconds[1:]


class _Repeat:
    """A loader that hands out the same batch."""

    def __init__(self, batch: Batch, times: int) -> None:
        self.batch, self.times = dict(batch), times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([self.batch] * self.times)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning announces devices at every start; between the lines of a progress bar that is noise."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no validation loop, few workers: all of it intended here
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.inference_mode()
def imagined_frames_per_second(
    model: WorldModelContract, state: State, controls: Tensor, batch: int, temperature: float, repeats: int
) -> Number:
    """Median over repeats of (batch x K) / wall seconds of one call of ``imagine``; nothing is decoded.

    Args:
        model: in evaluation mode.
        state: leading axis of at least one, widened to ``batch`` by repetition.
        controls: (B,K,...) alike.
        batch: rollouts at once.
        temperature: of imagination.
        repeats: at most; fewer when they take long.
    """
    rows = torch.arange(batch) % len(controls)
    device = next(iter(state.values())).device
    state, controls = map_state(state, lambda x: x[rows.to(device)]), controls[rows].to(device)
    speeds: list[float] = []
    begin = time.perf_counter()
    while len(speeds) <= repeats and (not speeds or time.perf_counter() - begin < SECONDS_PER_SPEED):
        start = time.perf_counter()
        model.imagine(state, controls, 1, temperature, torch.Generator(device).manual_seed(0))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(batch * controls.shape[1] / (time.perf_counter() - start))
    counted = speeds[1:] or speeds  # the first call warms up, unless it took all the time there is
    return Number(statistics.median(counted), len(counted))
