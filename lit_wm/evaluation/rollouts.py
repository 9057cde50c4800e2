"""Asking a model through the contract: what it sees of a clip and what it imagines.

A model is shown ``context`` frames and nothing after them, and never the true ``state``; then it imagines open loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_wm.contract import Batch, State, WorldModelContract, at, concatenate
from lit_wm.evaluation.settings import Settings

NOT_FOR_MODELS = ("state", "episode", "start")  # ground truth, and where the clip was cut from


@dataclass(frozen=True)
class Rollout:
    """What a model knows at each asked horizon.

    Args:
        features_bhd: (B,H,D) float32 on the CPU.
        frames_bhchw: (B,H,C,H,W) in [0, 1] by the model's own decoder, or None when it has none or was not asked.
    """

    features_bhd: Tensor
    frames_bhchw: Tensor | None


def device_of(model: WorldModelContract) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    parameters = getattr(model, "parameters", tuple)
    return next((p.device for p in parameters()), torch.device("cpu"))


def chunks(clips: Batch, size: int, steps: int | None = None, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Clips as a model may see them: ``size`` at a time, the first ``steps`` frames, without ground truth."""
    seen = {key: value for key, value in clips.items() if key not in NOT_FOR_MODELS}
    for start in range(0, len(clips["frames"] if "frames" in clips else clips["is_first"]), size):
        yield {key: value[start : start + size, :steps].to(device) for key, value in seen.items()}


@torch.inference_mode()
def infer_codes(model: WorldModelContract, clips: Batch, settings: Settings) -> Tensor | None:
    """(B,T-1) codes or (B,T-1,D) vectors that the model reads off whole clips, or None when it has no codes."""
    codes = [model.infer_actions(batch) for batch in chunks(clips, settings.batch_size, device=device_of(model))]
    return None if codes[0] is None else torch.cat(codes).cpu()


@torch.inference_mode()
def roll(
    model: WorldModelContract, clips: Batch, controls: Tensor, settings: Settings, decode: bool = False
) -> Rollout:
    """Observe the context, imagine the rest, keep the asked horizons.

    Args:
        model: in evaluation mode.
        clips: (B,T,...) with at least ``settings.length`` frames.
        controls: (B,K,...) what :meth:`imagine` takes.
        settings: context, horizons, temperature, seed.
        decode: also draw frames, where the model can.
    """
    features, frames = [], []
    for state in imagined_chunks(model, clips, controls, settings):
        asked = {key: value[:, [settings.context - 1 + k for k in settings.horizons]] for key, value in state.items()}
        features.append(model.features(asked).float().cpu())
        if decode:
            frames.append(model.decode(asked))
    drawn = decode and frames[0] is not None
    return Rollout(torch.cat(features), torch.cat([f.float().cpu() for f in frames]) if drawn else None)


@torch.inference_mode()
def imagined_chunks(model: WorldModelContract, clips: Batch, controls: Tensor, settings: Settings) -> Iterator[State]:
    """States (b,C+K,...) of a few clips at a time: observed up to the last context frame, imagined after it."""
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(settings.seed)
    size = settings.batch_size
    for batch, steering in zip(chunks(clips, size, settings.context, device), controls.split(size), strict=True):
        seen = model.observe(batch)
        last = at(seen, settings.context - 1)
        future = model.imagine(last, steering.to(device), 1, settings.temperature, generator)
        yield concatenate([seen, {key: value[:, 0] for key, value in future.items()}], dim=1)


@torch.inference_mode()
def closed_loop_features(model: WorldModelContract, clips: Batch, settings: Settings) -> Tensor:
    """(B,T,D) features of every frame of whole clips: what the common decoder is trained on."""
    batches = chunks(clips, settings.batch_size, device=device_of(model))
    return torch.cat([model.features(model.observe(batch)).float().cpu() for batch in batches])


@torch.inference_mode()
def redraw(model: WorldModelContract, clips: Batch, settings: Settings) -> Tensor | None:
    """(B,C,H,W) in [0, 1]: the last context frame as the model's own decoder draws it, or None when it has none."""
    drawn = []
    for batch in chunks(clips, settings.batch_size, settings.context, device_of(model)):
        frames = model.decode(at(model.observe(batch), settings.context - 1))
        if frames is None:
            return None
        drawn.append(frames.float().cpu())
    return torch.cat(drawn)
