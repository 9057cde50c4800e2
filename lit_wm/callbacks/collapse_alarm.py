"""CollapseAlarm: is this collapse? Looked at while a model trains, said in one line, and the run stopped if so wished."""

from __future__ import annotations

from dataclasses import asdict

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_wm.contract import Batch
from lit_wm.distributed import random_state, set_random_state
from lit_wm.errors import UserError, check_bounds
from lit_wm.evaluation.collapse import Readings, diagnosis

LEAST = 8  # predictions of a look


class CollapseAlarm(Callback):
    """Every N updates: how do representations and predictions vary over the frames of some batches at hand?

    Readings are logged as ``collapse/...``; the first are of the first batches. A finding that holds for ``patience`` looks
    in a row is an alarm: a warning of one line, ``collapse/alarm`` 1 and a text in TensorBoard. The training itself is left as it would
    be without. Under data parallelism the first rank's batches are looked at, and all ranks hear what is found.

    Args:
        every_n_steps: updates between two looks.
        batches: looked at together; with 8 predictions in all or more.
        patience: looks in a row that must find the same.
        stop: also end the run.
        least_std: see :func:`~lit_wm.evaluation.collapse.diagnosis`.
        least_rank: likewise.
        least_predicted: likewise.

    Raises:
        UserError: a number that cannot work.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        batches: int = 4,
        patience: int = 2,
        stop: bool = False,
        least_std: float = 0.05,
        least_rank: float = 2.5,
        least_predicted: float = 0.05,
    ) -> None:
        numbers = {"every_n_steps": every_n_steps, "batches": batches, "patience": patience}
        check_bounds("CollapseAlarm", numbers, {"every_n_steps": 1, "batches": 1, "patience": 1})
        self.every_n_steps, self.batches, self.patience, self.stop = every_n_steps, batches, patience, stop
        self.bounds = {"least_std": least_std, "least_rank": least_rank, "least_predicted": least_predicted}
        self.start: Readings | None = None
        self.found: list[str | None] = []
        self.alarms: list[str] = []
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []
        self._looking, self._last = True, -1  # the update of the last look: several batches may belong to one

    def state_dict(self) -> dict:
        return {
            "start": None if self.start is None else asdict(self.start),
            "found": self.found,
            "alarms": self.alarms,
            "gathered": self._gathered,
            "looking": self._looking,
            "last": self._last,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        start = state_dict["start"]
        self.start = None if start is None else Readings(**start)
        self.found, self.alarms = state_dict["found"], state_dict["alarms"]
        self._gathered, self._looking, self._last = (state_dict[key] for key in ("gathered", "looking", "last"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Gather, before this batch is learnt from, and look when there is enough.

        Raises:
            UserError: too few predictions for a look.
        """
        update = trainer.global_step
        self._looking = self._looking or (update > 0 and update % self.every_n_steps == 0 and self._last != update)
        if not self._looking:
            return
        self._gathered.append(look(pl_module, batch, seed=update))
        if len(self._gathered) < self.batches:
            return
        predicted, target, z = (torch.cat(parts) for parts in zip(*self._gathered, strict=True))
        if len(predicted) < LEAST:
            raise UserError(
                f"CollapseAlarm finds {len(predicted)} predictions in {self.batches} batches, it needs {LEAST}: raise batches"
            )
        self._gathered, self._looking, self._last = [], False, update
        self._judge(trainer, pl_module, trainer.strategy.broadcast(Readings.of(predicted, target, z)))

    def _judge(self, trainer: Trainer, pl_module: LightningModule, readings: Readings) -> None:
        if self.start is None:
            self.start = readings
        self.found.append(diagnosis(readings, self.start, **self.bounds))
        lately = self.found[-self.patience :]
        alarm = lately[0] if len(lately) == self.patience and len(set(lately)) == 1 else None
        numbers = {f"collapse/{name}": value for name, value in asdict(readings).items() if value is not None}
        pl_module.log_dict(numbers | {"collapse/alarm": float(alarm is not None)})
        if alarm is None or alarm in self.alarms:
            return
        self.alarms.append(alarm)
        line = f"update {trainer.global_step}: {alarm} ({readings})" + ("; the run stops" if self.stop else "")
        rank_zero_warn(line)
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("collapse/alarm", line, trainer.global_step)
        if self.stop:
            trainer.should_stop = True


def look(model: LightningModule, batch: Batch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """:meth:`~lit_wm.world_model.WorldModel.look` with random numbers of its own; the training's are left as they were."""
    random, training = random_state(), model.training
    model.eval()
    torch.manual_seed(seed)
    try:
        found = model.look(batch)
    finally:
        model.train(training)
        set_random_state(random)
    if not all(torch.isfinite(x).all() for x in found):
        raise UserError("CollapseAlarm: the model's representations are not finite: lower lr")
    return tuple(x.float().cpu() for x in found)
