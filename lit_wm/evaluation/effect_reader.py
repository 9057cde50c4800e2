"""What did the agent do between two pictures? A small network that tells the effect class, the same for every run.

It is fitted on pairs of **real** frames of training clips and then shown frames that a run drew
(:mod:`~lit_wm.evaluation.effect_readings`). Its accuracy on real test frames is what it could reach for a perfect painter.

The network looks everywhere for the marks of a movement (convolutions, then the maximum over places), so that it need not have
seen every movement at every place.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.contract import Batch
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.frames import unit
from lit_wm.evaluation.probes import MIN_SAMPLES

WIDTH, STEPS, BATCH, LR = 16, 200, 64, 1e-2
LARGEST = 64  # pictures with more pixels a side are averaged down to this many


class EffectNetwork(nn.Module):
    """A frame and its change -> logits of the effects.

    Args:
        channels: of the pictures.
        classes: number of effects.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.marks = nn.Sequential(
            nn.Conv2d(2 * channels, WIDTH, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1),
            nn.ReLU(),
        )
        self.classify = nn.Linear(2 * WIDTH, classes)

    def forward(self, before_nchw: Tensor, after_nchw: Tensor) -> Tensor:
        """(n,C,H,W) twice, in [0, 1] -> (n,classes)."""
        marks = self.marks(torch.cat([before_nchw, after_nchw - before_nchw], 1))
        return self.classify(marks.flatten(2).amax(-1))


class EffectReader:
    """Fits the network and reads pairs of pictures.

    Args:
        frames_btchw: uint8 clips.
        effect_bt: (B,T-1) class of the effect between each two frames, -1 where undefined.
        seed: of the weights and of the order of the pairs.

    Attributes:
        classes: (K,) the effects it knows.
    """

    def __init__(self, frames_btchw: Tensor, effect_bt: Tensor, seed: int) -> None:
        clip, step = (effect_bt != UNDEFINED).nonzero(as_tuple=True)
        self.classes, label = effect_bt[clip, step].unique(return_inverse=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = EffectNetwork(frames_btchw.shape[2], len(self.classes))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LR, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
        order = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            pick = torch.randint(len(label), (BATCH,), generator=order)
            before, after = (small(frames_btchw[clip[pick], step[pick] + later]) for later in (0, 1))
            loss = F.cross_entropy(self.network(before, after), label[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def __call__(self, before_nchw: Tensor, after_nchw: Tensor) -> Tensor:
        """(n,C,H,W) twice, uint8 or in [0, 1] -> (n,) effect classes."""
        pairs = zip(before_nchw.split(256), after_nchw.split(256), strict=True)
        return self.classes[torch.cat([self.network(small(a), small(b)).argmax(1) for a, b in pairs])]


def small(frames: Tensor) -> Tensor:
    """(n,C,H,W) in [0, 1], at most ``LARGEST`` pixels a side."""
    frames = unit(frames)
    size = [min(side, LARGEST) for side in frames.shape[-2:]]
    return frames if list(frames.shape[-2:]) == size else F.adaptive_avg_pool2d(frames, size)


def fit_reader(train: Batch, effect_bt: Tensor | str, seed: int) -> EffectReader | str:
    """A reader for training clips with these effects, or why there is none."""
    if isinstance(effect_bt, str):
        return effect_bt
    defined = effect_bt[effect_bt != UNDEFINED].numpy()
    kinds = np.unique(defined)
    if len(defined) < MIN_SAMPLES or len(kinds) < 2:
        return f"the training clips hold {len(defined)} defined effects, of {len(kinds)} kinds: too few to learn to read them"
    return EffectReader(train["frames"], effect_bt, seed)
