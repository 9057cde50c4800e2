"""A Genie world being played: an action in, a picture out, and nothing computed twice."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_wm.contract import State
from lit_wm.errors import UserError
from lit_wm.genie.rollout import FrameWindow
from lit_wm.genie.st_transformer import Past

if TYPE_CHECKING:
    from lit_wm.genie.module import GenieModule


class PlaySession:
    """One or more worlds that are played on from a state, all remembering equally many frames.

    The same tokens as :meth:`~lit_wm.genie.module.GenieModule.imagine` draws, and while the window is not full the same pictures
    as its ``decode``; but the keys and values of past frames stay in memory between calls, in the dynamics and in the tokenizer's
    decoder, so that a frame costs what is new in it.

    Args:
        model: in evaluation mode.
        state: leading axis (B,), as for ``imagine``.

    Raises:
        UserError: the states remember different numbers of frames.
    """

    @torch.no_grad()
    def __init__(self, model: GenieModule, state: State) -> None:
        lengths = state["valid"].sum(-1)
        length = int(lengths[0])
        if (lengths != length).any():
            raise UserError("states that are played together must remember equally many frames")
        self.model = model
        led = state["codes"][:, -length:][:, 1:]
        self.window = FrameWindow(model.dynamics, state["tokens"][:, -length:], model.lam.bottleneck.embed(led))
        self._past: Past | None = None  # of the tokenizer's decoder
        self._decoded = 0  # first frame of the session that is not decoded yet
        self._first = 0  # first frame of the session that the decoder remembers

    @torch.inference_mode()
    def step(self, action: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Take an action and draw the frame that it leads to.

        Args:
            action: (B,) codes, or (B,latent_dim) vectors where the model's actions are.
            temperature: as for ``imagine``.
            generator: source of randomness.

        Returns:
            (B,C,H,W) in [0, 1].

        Raises:
            UserError: an action that the model does not have.
        """
        self.model.check_actions(action[:, None])
        self.window.next(self.model.lam.bottleneck.embed(action), temperature, generator)
        return self._picture()

    def branch(self) -> PlaySession:
        """A second session that goes on from here by itself: nothing that has been computed is computed again."""
        other = copy.copy(self)
        other.window = copy.copy(self.window)
        return other

    def _picture(self) -> Tensor:
        window = self.window
        if window.first != self._first:  # old frames were dropped: what is left stands at other positions
            self._past, self._first, self._decoded = None, window.first, window.first
        new_btn = window.tokens_btn[:, self._decoded - window.first :]
        frames_btchw, self._past = self.model.tokenizer.decode_on(new_btn, self._past)
        self._decoded = window.first + window.tokens_btn.shape[1]
        return frames_btchw[:, -1]
