"""A world of one moving square, small enough to train on in seconds, and a small JEPA for it."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from datamodules.experience import ActionSpace, ExperienceSpec
from lit_wm.jepa import JEPAModule

SPEC = ExperienceSpec({"frames": (16, 16, 3)}, ActionSpace("discrete", (3,)))


def model_of(**options: object) -> JEPAModule:
    """One vector a frame, from convolutions, and a perceptron that predicts the next one."""
    torch.manual_seed(0)
    settings = {
        "encoder": {"kind": "convolution", "dim": 16, "widths": (8, 16), "hidden": 64, "patch": 8, "depth": 3, "heads": 4},
        "predictor": {"kind": "perceptron", "dim": 64, "depth": 1, "history": 1, "rollout_steps": 1},
        "optimizer": {"lr": 3e-3, "warmup_steps": 10},
        "loss": {"distance": "l2"},
        "target": {"momentum_start": 0.98},
    }  # fmt: skip
    return JEPAModule(SPEC.to_dict(), **(settings | options))


def batches(n: int = 300, size: int = 32) -> DataLoader:
    """n batches of clips of 3 frames: a square that goes left, stays or goes right as the action says."""
    g = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        action = torch.randint(0, 3, (size, 3), generator=g)
        column = torch.randint(0, 16, (size, 1), generator=g) + torch.cat(
            [torch.zeros(size, 1), 3 * (action[:, :2] - 1).cumsum(1)], 1
        )
        row = torch.randint(0, 12, (size, 1), generator=g).expand(-1, 3)
        y, x = torch.arange(16)[:, None], torch.arange(16)[None]
        inside = (y >= row[..., None, None]) & (y < row[..., None, None] + 5) & ((x - column[..., None, None]) % 16 < 5)
        frames = (30 + 190 * inside).to(torch.uint8).unsqueeze(2).expand(-1, -1, 3, -1, -1)
        first = torch.zeros(size, 3, dtype=torch.bool)
        first[:, 0] = True
        found.append({"frames": frames, "action": action, "is_first": first, "is_last": torch.zeros_like(first)})
    return DataLoader(found, batch_size=None)
