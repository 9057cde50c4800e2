"""What the tasks share: an encoder, perhaps a teacher that follows it, and what learns."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lit_wm.jepa.settings import TargetSettings
from lit_wm.jepa.vit import Block


class Task(nn.Module):
    """Base of the tasks, which set ``encoder``, and ``target_encoder`` where ``target.kind`` is ``ema``."""

    encoder: nn.Module
    target: TargetSettings

    @property
    def teacher(self) -> nn.Module:
        """The encoder that makes the targets; of pictures and clips also the one that is probed, as I-JEPA evaluates."""
        return self.target_encoder if self.target.kind == "ema" else self.encoder

    @property
    def learned(self) -> Iterable[nn.Parameter]:
        """What the optimizer moves: everything but the teacher."""
        return (p for p in self.parameters() if p.requires_grad)

    def blocks(self) -> list[nn.Module]:
        """Parts that FSDP2 gathers one by one."""
        return [module for module in self.modules() if isinstance(module, Block)]
