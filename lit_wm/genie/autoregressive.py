"""Causal autoregressive dynamics: one token after another in reading order, what MaskGIT is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.genie.dynamics_settings import DynamicsSettings
from lit_wm.genie.frame_input import FrameInput
from lit_wm.genie.maskgit import draw_tokens
from lit_wm.genie.st_transformer import Past, SpaceBlock, STTransformer
from lit_wm.nn.attention import KeysValues, joined
from lit_wm.nn.patches import sincos_2d


class RasterDecoder(nn.Module):
    """Blocks of causal attention among the tokens of one frame, in reading order.

    Args:
        grid: (rows, columns).
        dim, heads, ffn, blocks: sizes.
        qk_norm: normalise queries and keys.
    """

    def __init__(
        self, grid: tuple[int, int], dim: int, heads: int, ffn: int, blocks: int, qk_norm: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SpaceBlock(dim, heads, ffn, qk_norm, causal=True) for _ in range(blocks))
        self.norm_in, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.register_buffer("space_nd", sincos_2d(*grid, dim), persistent=False)

    def step(
        self, x_btmd: Tensor, past: tuple[int, list[KeysValues | None]] | None = None
    ) -> tuple[Tensor, tuple[int, list[KeysValues | None]]]:
        """Go on after the places that ``past`` holds: (B,T,M,D) -> (B,T,M,D), and the past that includes them."""
        start, layers = past or (0, [None] * len(self.blocks))
        stop = start + x_btmd.shape[2]
        x_btmd = self.norm_in(x_btmd) + self.space_nd[start:stop]
        now = []
        for block, before in zip(self.blocks, layers, strict=True):
            x_btmd, new = block(x_btmd, before)
            now.append(joined(before, new))
        return self.norm(x_btmd), (stop, now)


class AutoregressiveDynamics(nn.Module):
    """p(z_{t+1} | z_1:t, a~_1:t) = prod_n p(z_{t+1,n} | z_{t+1,<n}, h_t), in the place of MaskGIT.

    An ST transformer reads the past frames, each together with the action taken after it, into h_t (N vectors). A second
    one, causal within the frame, writes the next frame's tokens in reading order, given h_t. Sampling costs N small steps a
    frame instead of S large ones; unlike MaskGIT's, its law has a density (:meth:`nats`).

    Args:
        grid: (rows, columns) of tokens in a frame.
        frames: the longest clip W.
        codebook: (V,C) the code vectors that the token values stand for.
        action_dim: width of a latent action.
        settings: sizes; at least two blocks.
    """

    def __init__(
        self, grid: tuple[int, int], frames: int, codebook: Tensor, action_dim: int, settings: DynamicsSettings
    ) -> None:
        super().__init__()
        s = self.settings = settings
        self.frames, self.tokens = frames, grid[0] * grid[1]
        self.input = FrameInput(grid, codebook, action_dim, s)
        written = s.blocks // 2
        self.transformer = STTransformer(
            grid, frames, s.dim, s.heads, s.ffn, s.blocks - written, self.input.extra_tokens, qk_norm=s.qk_norm
        )
        self.start = nn.Parameter(torch.randn(s.dim) * 0.02)
        self.decoder = RasterDecoder(grid, s.dim, s.heads, s.ffn, written, s.qk_norm)

    def context(self, tokens_btn: Tensor, action_bta: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """h (B,T,N,D) of frames, each with the action taken **after** it (B,T,A), and what is kept of them."""
        x_btnd = self.input(self.input.token_vectors(tokens_btn), action_bta)
        h_btnd, past = self.transformer.step(x_btnd, past)
        return h_btnd[:, :, self.input.extra_tokens :], past

    def forward(self, tokens_btn: Tensor, action_bta: Tensor) -> Tensor:
        """(B,T,N), actions (B,T-1,A) between them -> logits (B,T-1,N,V) of frames 1..T-1, each token given those before it."""
        h_btnd, _ = self.context(tokens_btn[:, :-1], action_bta)
        before_btnd = self.input.token_vectors(tokens_btn[:, 1:, :-1])
        start_bt1d = self.start.expand(*before_btnd.shape[:2], 1, -1)
        y_btnd, _ = self.decoder.step(h_btnd + torch.cat([start_bt1d, before_btnd], 2))
        return self.input.logits(y_btnd)

    def nats(self, tokens_btn: Tensor, action_bta: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of every token of frames 1..T-1, and whether it was the likeliest: (B,T-1,N) twice."""
        logits_btnv = self(tokens_btn, action_bta)
        targets_btn = tokens_btn[:, 1:]
        nats_btn = F.cross_entropy(logits_btnv.float().movedim(-1, 1), targets_btn, reduction="none")
        return nats_btn, logits_btnv.argmax(-1) == targets_btn

    def loss(self, tokens_btn: Tensor, action_bta: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`nats` in one row: (M,) nats and (M,) bool."""
        nats_btn, right_btn = self.nats(tokens_btn, action_bta)
        return nats_btn.flatten(), right_btn.flatten()

    def read(self, tokens_btn: Tensor, action_bla: Tensor, known: int, past: Past | None) -> tuple[Tensor, Past]:
        """Take finished frames into the cache, as :meth:`~lit_wm.genie.dynamics.DynamicsModel.read`; also h of the last one."""
        h_btnd, past = self.context(tokens_btn, action_bla[:, known:], past)
        return h_btnd[:, -1:], past

    def sample(
        self,
        read: tuple[Tensor, Past],
        action_b1a: Tensor,
        temperature: float,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(B,N) int64: the next frame. ``action_b1a`` was read with the last frame; the rest as for MaskGIT."""
        h_b1nd, _ = read
        temperature *= self.settings.temperature
        drawn: list[Tensor] = []
        x_b11d, past = self.start.expand(len(h_b1nd), 1, 1, -1), None
        for n in range(self.tokens):
            y_b11d, past = self.decoder.step(h_b1nd[:, :, n : n + 1] + x_b11d, past)
            token_b1, _ = draw_tokens(self.input.logits(y_b11d[:, 0]), temperature, generator)
            drawn.append(token_b1)
            x_b11d = self.input.token_vectors(token_b1)[:, None]
        return torch.cat(drawn, 1)
