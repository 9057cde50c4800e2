"""Batches and a model small enough for tests of the JEPA route."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.jepa import JEPAModule

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (3,)))
SMALL = {
    "encoder": {"patch": 8, "dim": 16, "depth": 1, "heads": 2},
    "predictor": {"dim": 16, "depth": 2, "heads": 2},
    "optimizer": {"warmup_steps": 1},
}


def small(spec: ExperienceSpec = SPEC, seed: int = 0, **options) -> JEPAModule:
    """Groups of settings are laid over the small ones."""
    torch.manual_seed(seed)
    groups = {
        name: SMALL.get(name, {}) | value if isinstance(value, dict) else value for name, value in options.items()
    }
    return JEPAModule(spec.to_dict(), **(SMALL | groups))


def batch_of(b: int = 2, t: int = 7, seed: int = 0, spec: ExperienceSpec = SPEC) -> dict[str, Tensor]:
    """Noise pictures; the first row of each clip starts an episode."""
    g = torch.Generator().manual_seed(seed)
    h, w, c = spec.observations["frames"]
    first = torch.zeros(b, t, dtype=torch.bool)
    first[:, 0] = True
    return {
        "frames": torch.randint(0, 256, (b, t, c, h, w), generator=g).to(torch.uint8),
        "action": torch.randint(0, spec.action.sizes[0], (b, t), generator=g),
        "is_first": first,
        "is_last": torch.zeros(b, t, dtype=torch.bool),
    }


def moving_square(b: int, t: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A bright 8x8 square on 16x16 that stays, or steps 4 pixels right or left (round the edge), as the action says."""
    g = torch.Generator().manual_seed(seed)
    batch = batch_of(b, t, seed)
    step = torch.tensor([0, 1, -1])[batch["action"]]
    place = torch.randint(0, 4, (b, 1), generator=g) + torch.cat(
        [torch.zeros_like(step[:, :1]), step[:, :-1].cumsum(1)], 1
    )
    row = torch.randint(0, 9, (b,), generator=g)
    frames = torch.full((b, t, 3, 16, 16), 30, dtype=torch.uint8)
    for i in range(b):
        for j in range(t):
            columns = (4 * int(place[i, j]) + torch.arange(8)) % 16
            frames[i, j][:, row[i] : row[i] + 8, columns] = 220
    return batch | {"frames": frames}
