"""JEPAModule: predict representations, never pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_wm.contract import Batch, State
from lit_wm.distributed import ema_update
from lit_wm.errors import UserError
from lit_wm.jepa.frame_task import FrameTask
from lit_wm.jepa.masked_task import MaskedTask
from lit_wm.jepa.masks import MaskSettings
from lit_wm.jepa.schedules import learning_rate, momentum, weight_decay
from lit_wm.jepa.settings import (
    EncoderSettings,
    LossSettings,
    OptimizerSettings,
    PredictorSettings,
    RegularizerSettings,
    TargetSettings,
    check_settings,
)
from lit_wm.settings import settings_from
from lit_wm.world_model import WorldModel

ENCODER, PREDICTOR, TARGET = EncoderSettings(), PredictorSettings(), TargetSettings()
REGULARIZERS, LOSS, OPTIMIZER = RegularizerSettings(), LossSettings(), OptimizerSettings()


class JEPAModule(WorldModel):
    """The JEPA family: an encoder, a target that it must predict, a predictor, and something against collapse.

    Three tasks. ``frames``: the next frame from the past ones, with or without actions (V-JEPA 2-AC, LeWM, PLDM). ``image``: hidden
    blocks of a picture from the rest (I-JEPA). ``video``: hidden tubes of a clip from the rest (V-JEPA). The equations stand in this
    folder's README.

    Args:
        experience: description of the data; it must hold pictures under ``frames``.
        task: ``frames``, ``image`` or ``video``.
        actions: in the task ``frames``: condition on the environment's actions. Without, training needs neither ``action`` nor
            ``reward``.
        encoder: from a frame to its representation.
        predictor: from representations to others.
        target: what is predicted.
        masks: in the tasks ``image`` and ``video``: one for each mask drawn for every sample; None: the paper's.
        regularizers: against collapse.
        loss: distances and weights.
        optimizer: AdamW and its schedules.

    Raises:
        UserError: no pictures under ``frames``, settings that nothing would read, or sizes that do not fit each other.
    """

    route = "jepa"
    can_be_sharded = True

    def __init__(
        self,
        experience: dict[str, Any],
        task: str = "frames",
        actions: bool = True,
        encoder: EncoderSettings = ENCODER,
        predictor: PredictorSettings = PREDICTOR,
        target: TargetSettings = TARGET,
        masks: Sequence[MaskSettings] | None = None,
        regularizers: RegularizerSettings = REGULARIZERS,
        loss: LossSettings = LOSS,
        optimizer: OptimizerSettings = OPTIMIZER,
    ) -> None:
        acts = actions and task == "frames"
        super().__init__(experience, ("frames", "actions") if acts else ("frames",))
        e = settings_from(EncoderSettings, encoder, "encoder", "jepa")
        p = settings_from(PredictorSettings, predictor, "predictor", "jepa")
        t = settings_from(TargetSettings, target, "target", "jepa")
        r = settings_from(RegularizerSettings, regularizers, "regularizers", "jepa")
        w = settings_from(LossSettings, loss, "loss", "jepa")
        o = settings_from(OptimizerSettings, optimizer, "optimizer", "jepa")
        m = None if masks is None else [settings_from(MaskSettings, mask, "masks", "jepa") for mask in masks]
        check_settings(task, e, p, t, r, w, o)
        if "frames" not in self.spec.pictures:
            raise UserError("the jepa model needs pictures under 'frames', which this data does not hold")
        if r.inverse_dynamics and not acts:
            raise UserError(
                "regularizers.inverse_dynamics of the jepa model tells actions, which it is not given: set it to 0"
            )
        if m is not None and task == "frames":
            raise UserError("masks of the jepa model hide parts of pictures, but task is frames: leave them out")
        self.action_space = "environment" if acts else "none"
        self.optimizer_settings, self.target_settings = o, t
        try:
            if task == "frames":
                self.task: FrameTask | MaskedTask = FrameTask(self.spec, acts, e, p, t, r, w)
            else:
                self.task = MaskedTask(self.spec, task == "video", e, p, t, r, w, m)
        except ValueError as error:
            raise UserError(f"the jepa model's sizes do not fit: {error}") from error
        self.imagines = self.task.imagines
        # plain types, so that a checkpoint opens without running code
        encoder, predictor, target, regularizers, loss, optimizer = (_plain(x) for x in (e, p, t, r, w, o))
        masks = None if m is None else [_plain(mask) for mask in m]
        self.save_hyperparameters(ignore=["acts"])

    # ---- training ------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the task."""
        return self.task.losses(batch, self.updates)

    @torch.no_grad()
    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """In the space of the loss: predicted and target representations, (n,D) each."""
        return self.task.predictions(batch)

    def sharded_blocks(self) -> Iterable[nn.Module]:
        """Every block of every transformer, the teacher's too."""
        return self.task.blocks()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, no decay on biases and 1-D parameters; the schedules of :mod:`lit_wm.jepa.schedules`."""
        o, learned = self.optimizer_settings, list(self.task.learned)
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": o.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=o.lr)
        total = self.schedule_steps() * o.span

        def factor(update: int) -> float:
            return learning_rate(update + 1, o.warmup_steps, total, o.start_lr, o.lr, o.final_lr) / o.lr

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def schedule_steps(self) -> int:
        """Updates of the whole run.

        Raises:
            UserError: the run has no end, so that schedules cannot be drawn.
        """
        total = self.optimizer_settings.steps or self.trainer.estimated_stepping_batches
        if not 0 < total < float("inf"):
            raise UserError("the jepa model's schedules need the length of the run: give --trainer.max_steps")
        return int(total)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """One update, then the target follows: once per update, however many batches were accumulated."""
        update = self.trainer.global_step  # updates made before this one; restored by a checkpoint
        o, t, total = self.optimizer_settings, self.target_settings, self.schedule_steps()
        if o.final_weight_decay is not None:
            decay = weight_decay(update + 1, total * o.span, o.weight_decay, o.final_weight_decay)
            optimizer.param_groups[0]["weight_decay"] = decay
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        if t.kind == "ema":
            m = momentum(update, total * t.span, t.momentum_start, t.momentum_end)
            ema_update(self.task.target_encoder, self.task.encoder, m)
            self.log("train/momentum", m)

    # ---- the contract ----------------------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> State:
        return self.task.observe(batch)

    def imagine(
        self,
        state: State,
        actions: Tensor,
        samples: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> State:
        """Open loop and deterministic: all samples are equal.

        Raises:
            UserError: a model of hidden patches, which has no future.
        """
        if not self.imagines:
            raise UserError("this jepa model predicts hidden parts of what it sees, not the future: it cannot imagine")
        return self.task.imagine(state, actions, samples)

    def feature_map(self, state: State) -> Tensor | None:
        return self.task.feature_map(state)

    def features(self, state: State) -> Tensor:
        return self.task.features(state)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        return self.task.targets(batch)


def _plain(settings: Any) -> dict[str, Any]:
    """Settings as lists, numbers and strings."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(settings).items()}
