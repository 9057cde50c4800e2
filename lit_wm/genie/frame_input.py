"""Tokens of frames and the actions between them, as the input of a dynamics model, and its features as logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.genie.dynamics_settings import DynamicsSettings


class FrameInput(nn.Module):
    """Embeds frames of tokens together with one action each, and reads logits off features.

    Args:
        grid: (rows, columns) of tokens in a frame.
        codebook: (V,C) the code vectors that the token values stand for.
        action_dim: width of a latent action.
        settings: sizes and switches.

    Attributes:
        extra_tokens: how many tokens stand before those of the grid: 1 where actions are prepended, else 0.
    """

    def __init__(self, grid: tuple[int, int], codebook: Tensor, action_dim: int, settings: DynamicsSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.grid, self.extra_tokens = grid, int(s.action == "prepend")
        vocabulary, width = codebook.shape
        if s.know_codes:
            self.register_buffer("codes", torch.empty(vocabulary, width))
            self.see_codes(codebook)
            self.code_in, self.code_out = nn.Linear(width, s.dim), nn.Linear(s.dim, width)
        else:
            self.token_in = nn.Embedding(vocabulary, s.dim)
        self.around = nn.Conv2d(s.dim, s.dim, 3, padding=1) if s.neighbours else None
        self.action_in = nn.Linear(action_dim, s.dim)
        self.head = nn.Linear(s.dim, vocabulary)

    @torch.no_grad()
    def see_codes(self, codebook: Tensor) -> None:
        """Take over the tokenizer's code vectors (V,C), scaled to mean 0 and variance 1 over all their numbers."""
        if self.settings.know_codes:
            centred = codebook - codebook.mean(0)
            self.codes.copy_(centred / centred.std().clamp_min(1e-8))

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (..., D)."""
        return self.code_in(self.codes[tokens]) if self.settings.know_codes else self.token_in(tokens)

    def logits(self, h: Tensor) -> Tensor:
        """(..., D) features -> (..., V)."""
        return self.head(h) + self.code_out(h) @ self.codes.T if self.settings.know_codes else self.head(h)

    def forward(self, h_btnd: Tensor, action_bta: Tensor) -> Tensor:
        """Token vectors and an action for each frame -> (B,T,N,D), or (B,T,1+N,D) where actions are prepended.

        Args:
            h_btnd: (B,T,N,D) token vectors.
            action_bta: (B,T,A); one fewer where the first frame has none, which then counts as a zero embedding.
        """
        b, t = h_btnd.shape[:2]
        if self.around is not None:
            x_mdhw = h_btnd.flatten(0, 1).mT.unflatten(2, self.grid)
            h_btnd = h_btnd + self.around(x_mdhw).flatten(2).mT.unflatten(0, (b, t))
        action_bt1d = F.pad(self.action_in(action_bta), (0, 0, t - action_bta.shape[1], 0))[:, :, None]
        return torch.cat([action_bt1d, h_btnd], 2) if self.extra_tokens else h_btnd + action_bt1d
