"""Open-loop predictions while a model trains: truth, prediction and error, as a moving picture in TensorBoard."""

from __future__ import annotations

import io

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from datamodules.experience import STEP_KEYS, ActionSpace, action_vectors
from lit_wm.contract import Batch, at
from lit_wm.errors import UserError
from lit_wm.evaluation.render import tile, write_gif


class OpenLoopVideo(Callback):
    """Every N updates: the model sees ``context`` frames of some clips and imagines the rest.

    The clips are the first of the batch at hand or, where an agent acts, what its environments did last.

    Three rows: truth, prediction, and error ((prediction - truth + 1) / 2, grey where right); a column per clip. Green
    borders were seen, orange ones imagined. For routes that take the environment's actions and draw pictures.

    Args:
        every_n_steps: updates between two videos.
        context: frames that are seen.
        clips: clips side by side.
        length: frames of a clip where an agent acts, or as many as the episode has; recorded clips are as long as they are.
    """

    def __init__(self, every_n_steps: int = 1000, context: int = 5, clips: int = 4, length: int = 20) -> None:
        if min(every_n_steps, context, clips) < 1:
            raise UserError("OpenLoopVideo: every_n_steps, context and clips must be at least 1")
        if length <= context:
            raise UserError(f"OpenLoopVideo: length {length} leaves nothing to imagine after a context of {context}")
        self.every_n_steps, self.context, self.clips, self.length = every_n_steps, context, clips, length
        self._drawn = 0  # the last update that was drawn: with accumulated gradients several batches belong to one

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say at once that there will be nothing to see."""
        if pl_module.action_space != "environment" or "frames" not in pl_module.spec.observations:
            rank_zero_warn(
                "OpenLoopVideo draws nothing: the model takes no actions, or the data holds no picture 'frames'"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Tensor, batch: Batch, batch_idx: int
    ) -> None:
        """Draw and log, at each N-th update and from the first rank alone."""
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._drawn
        if not (due and trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)):
            return
        self._drawn = trainer.global_step
        if hasattr(trainer.datamodule, "newest"):
            played = trainer.datamodule.newest(self.clips, self.length)
            if played is None or played["is_first"].shape[1] <= self.context:
                return  # no episode is long enough yet
            batch = {key: value.to(pl_module.device) for key, value in played.items()}
        rows = open_loop(pl_module, batch, self.context, self.clips)
        if rows is None:
            return
        gif = io.BytesIO()
        pictures = frames_of(rows, self.context)
        write_gif(pictures, gif)
        width, height = pictures[0].size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif.getvalue())
        summary = Summary(value=[Summary.Value(tag="open_loop/truth_prediction_error", image=image)])
        trainer.logger.experiment.file_writer.add_summary(summary, trainer.global_step)


@torch.no_grad()
def open_loop(model: LightningModule, batch: Batch, context: int, clips: int) -> Tensor | None:
    """(3,clips,T,C,H,W) in [0, 1]: truth, prediction, error; None for a model without pictures or without actions.

    Raises:
        UserError: the clips are not longer than the context.
    """
    if "frames" not in batch or model.action_space != "environment":
        return None
    steps = batch["frames"].shape[1]
    if steps <= context:
        raise UserError(f"OpenLoopVideo: clips of {steps} frames leave nothing to imagine after a context of {context}")
    clip = {key: batch[key][:clips] for key in (*model.spec.observations, *STEP_KEYS)}
    was_training = model.training
    model.eval()
    seen = model.observe({key: x[:, :context] for key, x in clip.items()})
    space: ActionSpace = model.spec.action
    actions = action_vectors(clip["action"], clip["is_last"], space)[:, context - 1 : -1]
    ahead = model.imagine(at(seen, context - 1), actions, temperature=0)
    drawn = model.decode(seen)
    model.train(was_training)
    if drawn is None:
        return None
    truth = clip["frames"].float() / 255
    prediction = torch.cat([drawn, model.decode(ahead)[:, 0]], 1).float().clamp(0, 1)
    return torch.stack([truth, prediction, (prediction - truth + 1) / 2])


def frames_of(rows: Tensor, context: int) -> list[Image.Image]:
    """One picture per time step of (rows,clips,T,C,H,W)."""
    pixels = (rows * 255).round().byte().cpu()
    pictures = []
    for t in range(pixels.shape[2]):
        tiles = [[tile(frame, t < context) for frame in row[:, t]] for row in pixels]
        width, height = tiles[0][0].size
        picture = Image.new("RGB", (len(tiles[0]) * width, len(tiles) * height))
        for y, row in enumerate(tiles):
            for x, one in enumerate(row):
                picture.paste(one, (x * width, y * height))
        pictures.append(picture)
    return pictures
