"""From a prompt into the open: a model sees the prompt, imagines what follows from what is done, and draws it."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_wm.contract import Batch, WorldModelContract, at, map_state
from lit_wm.errors import UserError
from lit_wm.evaluation.code_picture import as_bytes
from lit_wm.evaluation.rollouts import device_of


@torch.inference_mode()
def generate(
    model: WorldModelContract, prompt: Batch, controls: Tensor, samples: int, temperature: float, seed: int
) -> Tensor:
    """Frames of worlds that all begin from one prompt.

    Args:
        model: in evaluation mode.
        prompt: (1,T,...), as of :mod:`lit_wm.play.prompt`.
        controls: (R,K,...) what is done in each of R worlds.
        samples: S futures of each.
        temperature: as for ``imagine``.
        seed: of all that is drawn.

    Returns:
        (R,S,T+1+K,C,H,W) uint8: the prompt as it is, its last frame as the model draws it, and what it imagines.

    Raises:
        UserError: the model has no decoder.
    """
    device = device_of(model)
    seen = model.observe({key: value.to(device) for key, value in prompt.items()})
    redrawn = model.decode(map_state(seen, lambda x: x[:, -1:]))
    if redrawn is None:
        raise UserError("the model has no decoder of its own: it imagines, but cannot draw what")
    start = map_state(at(seen, -1), lambda x: x.repeat_interleave(len(controls), 0))
    generator = torch.Generator(device).manual_seed(seed)
    imagined = model.decode(model.imagine(start, controls.to(device), samples, temperature, generator))
    shown = torch.cat([prompt["frames"].cpu(), as_bytes(redrawn.cpu())], 1)
    return torch.cat([shown[:, None].expand(*imagined.shape[:2], *shown.shape[1:]), as_bytes(imagined.cpu())], 2)
