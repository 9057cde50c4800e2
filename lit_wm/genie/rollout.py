"""Frame after frame: the window of what a dynamics model remembers, and its cache."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_wm.genie.autoregressive import AutoregressiveDynamics
from lit_wm.genie.dynamics import DynamicsModel
from lit_wm.genie.dynamics_settings import DynamicsSettings

Dynamics = DynamicsModel | AutoregressiveDynamics


def make_dynamics(
    grid: tuple[int, int], frames: int, codebook: Tensor, action_dim: int, settings: DynamicsSettings
) -> Dynamics:
    """The dynamics model that the settings ask for."""
    kind = DynamicsModel if settings.kind == "maskgit" else AutoregressiveDynamics
    return kind(grid, frames, codebook, action_dim, settings)


def kept_frames(length: int, frames: int) -> int:
    """How many of ``length`` remembered frames stay when one more is to come in a window of ``frames``.

    All while there is room. Then a quarter of the window is dropped at once: what is left stands at other positions and must
    be read anew, and this way that happens for every W/4-th frame only. A longer memory than W was never trained.

    >>> [kept_frames(length, 16) for length in (1, 15, 16)]
    [1, 15, 12]
    """
    return length if length < frames else frames - max(frames // 4, 1)


class FrameWindow:
    """The last frames of B worlds that all remember equally many, and what the dynamics keeps of them.

    Past frames do not change while the next one is being drawn, so their keys and values are computed once.

    Args:
        dynamics: draws the frames.
        tokens_btn: (B,T,N) context, T >= 1.
        action_bta: (B,T-1,A) actions between the context's frames.

    Attributes:
        tokens_btn, action_bta: what is remembered now.
        first: how many frames have been forgotten.
    """

    def __init__(self, dynamics: Dynamics, tokens_btn: Tensor, action_bta: Tensor) -> None:
        self.dynamics = dynamics
        self.tokens_btn, self.action_bta, self.first = tokens_btn, action_bta, 0
        self._past, self._known = None, 0

    @torch.no_grad()
    def next(self, action_ba: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Take an action (B,A), draw the frame (B,N) that it leads to, and remember both.

        Args:
            action_ba: latent actions.
            temperature: multiplies the settings' temperature; 0 takes the likeliest tokens.
            generator: source of randomness.
        """
        action_b1a = action_ba[:, None]
        self.action_bta = torch.cat([self.action_bta, action_b1a], 1)
        length = self.tokens_btn.shape[1]
        if (keep := kept_frames(length, self.dynamics.frames)) < length:
            self.tokens_btn, self.action_bta = self.tokens_btn[:, -keep:], self.action_bta[:, -keep:]
            self.first += length - keep
            self._past, self._known = None, 0
        new_btn = self.tokens_btn[:, self._known :]
        read = self.dynamics.read(new_btn, self.action_bta, self._known, self._past)
        self._past, self._known = read[1], self.tokens_btn.shape[1]
        frame_bn = self.dynamics.sample(read, action_b1a, temperature, generator)
        self.tokens_btn = torch.cat([self.tokens_btn, frame_bn[:, None]], 1)
        return frame_bn


def rollout(
    dynamics: Dynamics,
    tokens_btn: Tensor,
    past_action_bta: Tensor,
    action_bka: Tensor,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample K frames one after another, each given what the window holds.

    Args:
        dynamics: the model.
        tokens_btn: (B,T,N) context, T >= 1.
        past_action_bta: (B,T-1,A) actions between the context's frames.
        action_bka: (B,K,A) actions to take; the first one after the last frame of the context.
        temperature: multiplies the settings' temperature; 0 takes the likeliest token.
        generator: source of randomness.

    Returns:
        (B,K,N) int64.
    """
    window = FrameWindow(dynamics, tokens_btn, past_action_bta)
    return torch.stack([window.next(action_ba, temperature, generator) for action_ba in action_bka.unbind(1)], 1)
