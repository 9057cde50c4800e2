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


class CollapseAlarm(Callback):
    """Every N updates: how do representations and predictions vary over some hundreds of frames of the batches at hand?

    Readings are logged as ``collapse/...``; the first are of the first batches. A finding that holds for ``patience`` looks
    in a row is an alarm: a warning of one line, ``collapse/alarm`` 1 and a text in TensorBoard. The training itself is left as it would
    be without. Each rank looks at its own batches; the first one speaks.

    Args:
        every_n_steps: updates between two looks.
        samples: predictions that a look gathers, from as many batches as it takes.
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
        samples: int = 256,
        patience: int = 2,
        stop: bool = False,
        least_std: float = 0.05,
        least_rank: float = 2.5,
        least_predicted: float = 0.05,
    ) -> None:
        numbers = {"every_n_steps": every_n_steps, "samples": samples, "patience": patience}
        check_bounds("CollapseAlarm", numbers, {"every_n_steps": 1, "samples": 8, "patience": 1})
        self.every_n_steps, self.samples, self.patience, self.stop = every_n_steps, samples, patience, stop
        self.bounds = {"least_std": least_std, "least_rank": least_rank, "least_predicted": least_predicted}
        self.start: Readings | None = None
        self.found: list[str | None] = []
        self.alarms: list[str] = []
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []
        self._looking = True

    def state_dict(self) -> dict:
        return {"start": None if self.start is None else asdict(self.start), "found": self.found, "alarms": self.alarms}

    def load_state_dict(self, state_dict: dict) -> None:
        start = state_dict["start"]
        self.start, self._looking = None if start is None else Readings(**start), start is None
        self.found, self.alarms = state_dict["found"], state_dict["alarms"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Gather, before this batch is learnt from, and look when there is enough."""
        due = trainer.global_step > 0 and trainer.global_step % self.every_n_steps == 0
        self._looking = self._looking or (due and self._last != trainer.global_step)
        if not self._looking:
            return
        self._gathered.append(look(pl_module, batch))
        if sum(len(predicted) for predicted, _, _ in self._gathered) < self.samples:
            return
        readings = Readings.of(*(torch.cat(parts) for parts in zip(*self._gathered, strict=True)))
        self._gathered, self._looking, self._last = [], False, trainer.global_step
        self._judge(trainer, pl_module, readings)

    _last = -1  # the update of the last look: with accumulated gradients several batches belong to one

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


@torch.no_grad()
def look(model: LightningModule, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions and their targets, (n,D), and representations of a batch's frames, (m,P,D): tokens at P places, or else the features.
    The training's random numbers are left as they were."""
    random, training = random_state(), model.training
    model.eval()
    try:
        predicted, target = model.predictions(batch)
        state = model.observe(batch)
        tokens = model.feature_map(state)
        z_mpd = (model.features(state).unsqueeze(-2) if tokens is None else tokens).flatten(0, 1)
    finally:
        model.train(training)
        set_random_state(random)
    if not all(torch.isfinite(x).all() for x in (predicted, target, z_mpd)):
        raise UserError("CollapseAlarm: the model's representations are not finite: lower lr")
    return predicted.float().cpu(), target.float().cpu(), z_mpd.float().cpu()
