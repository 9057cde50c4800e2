"""The spatio-temporal transformer that all of Genie is built from (Genie, section 2.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_wm.nn.attention import MLP, Attention, KeysValues, TimeAttention, joined
from lit_wm.nn.patches import sincos, sincos_2d


class Past(NamedTuple):
    """What a transformer keeps of the frames it has read."""

    frames: int
    layers: list[KeysValues | None]  # of each block; None where it does not look back


class STBlock(nn.Module):
    """Attention within each frame, causal attention along each place, then **one** feed-forward layer after both.

    Cost grows linearly with the number of frames. The paper leaves the norms open; here each of the three sub-layers
    is pre-normalised and residual, as in its public re-implementations.

    Args:
        dim: width D.
        heads: attention heads.
        ffn: hidden width of the feed-forward layer.
        qk_norm: normalise queries and keys.
    """

    def __init__(self, dim: int, heads: int, ffn: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm_space, self.space = nn.LayerNorm(dim), Attention(dim, heads, qk_norm=qk_norm)
        self.norm_time, self.time = nn.LayerNorm(dim), TimeAttention(dim, heads, qk_norm)
        self.norm_ffn, self.ffn = nn.LayerNorm(dim), MLP(dim, ffn)

    def forward(self, x_btnd: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """(B,T,N,D) -> (B,T,N,D), and the new temporal keys and values (B,N*heads,T,D/heads)."""
        y, _ = self.space(self.norm_space(x_btnd).flatten(0, 1))
        x_btnd = x_btnd + y.view_as(x_btnd)
        y, new = self.time(self.norm_time(x_btnd), past)
        x_btnd = x_btnd + y
        return x_btnd + self.ffn(self.norm_ffn(x_btnd)), new


class SpaceBlock(nn.Module):
    """Attention within each frame, then a feed-forward layer: a ViT that sees every frame by itself.

    Args:
        dim, heads, ffn, qk_norm: as for :class:`STBlock`.
        causal: tokens see only those before them in reading order, and ``past`` holds tokens of the same frame.
    """

    def __init__(self, dim: int, heads: int, ffn: int, qk_norm: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal, qk_norm=qk_norm)
        self.norm_ffn, self.ffn = nn.LayerNorm(dim), MLP(dim, ffn)

    def forward(self, x_btnd: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues | None]:
        """(B,T,N,D) -> (B,T,N,D); with ``causal`` also the new keys and values (B*T,heads,N,D/heads)."""
        y, new = self.attention(self.norm(x_btnd).flatten(0, 1), past)
        x_btnd = x_btnd + y.view_as(x_btnd)
        return x_btnd + self.ffn(self.norm_ffn(x_btnd)), new if self.attention.causal else None


class FullBlock(SpaceBlock):
    """Attention among all tokens of all frames up to the present one, then a feed-forward layer: C-ViViT's, as Genie's
    comparison describes it. Cost grows with the square of the number of frames.
    """

    def forward(self, x_btnd: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """(B,T,N,D) -> (B,T,N,D), and the new keys and values (B,heads,T*N,D/heads)."""
        _, t, n, _ = x_btnd.shape
        before = 0 if past is None else past[0].shape[2] // n
        frame = torch.arange(before + t, device=x_btnd.device).repeat_interleave(n)
        mask = frame[before * n :, None] >= frame
        y, new = self.attention(self.norm(x_btnd).flatten(1, 2), past, mask)
        x_btnd = x_btnd + y.view_as(x_btnd)
        return x_btnd + self.ffn(self.norm_ffn(x_btnd)), new


BLOCKS = {"factored": STBlock, "full": FullBlock, "space": SpaceBlock}


class STTransformer(nn.Module):
    """Blocks between embedded tokens and features; projections in and out belong to whoever uses it.

    Position code: fixed sines and cosines of row, column and frame, added once at the input, after a layer norm that lifts
    the content to the same size (without it places drown small things for hundreds of updates). The paper is silent;
    this is what jasmine, a public re-implementation, does.

    Args:
        grid: (rows, columns) of tokens in a frame.
        frames: the longest clip W; longer ones are refused because no position beyond it was ever trained.
        dim: width D, divisible by 4 (position code) and by ``heads``.
        heads: attention heads.
        ffn: hidden width of the feed-forward layers.
        blocks: number of blocks.
        extra_tokens: learned tokens that stand before those of the grid, without a place.
        positions: False leaves the position code out; attention over time stays causal.
        attention: ``factored``, Genie's; for comparison ``full``, over space and time at once, and ``space``, within a frame.
        qk_norm: normalise queries and keys.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        frames: int,
        dim: int,
        heads: int,
        ffn: int,
        blocks: int,
        extra_tokens: int = 0,
        positions: bool = True,
        attention: str = "factored",
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.blocks = nn.ModuleList(BLOCKS[attention](dim, heads, ffn, qk_norm) for _ in range(blocks))
        self.norm_in, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        space_nd = torch.cat([torch.zeros(extra_tokens, dim), sincos_2d(*grid, dim)])
        self.register_buffer("space_nd", space_nd * positions, persistent=False)
        in_time = positions and attention != "space"  # a frame by itself has no time
        self.register_buffer("time_td", sincos(torch.arange(frames), dim) * in_time, persistent=False)

    def forward(self, x_btnd: Tensor, past: Past | None = None) -> Tensor:
        """(B,T,N,D) embedded tokens -> (B,T,N,D) normalised features; those at t depend on frames <= t only.

        Args:
            x_btnd: frames that follow on those of ``past``.
            past: from :meth:`step`; None at the beginning of a clip. It is not changed, so the same past may be used again and
                again while a frame is being refined.

        Raises:
            ValueError: past and new frames together exceed ``frames``.
        """
        return self._run(x_btnd, past)[0]

    def step(self, x_btnd: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """As :meth:`forward`, and the past that includes these frames: so all goes on without computing old frames again."""
        x_btnd, news = self._run(x_btnd, past)
        start, layers = past or (0, [None] * len(self.blocks))
        kept = [None if new is None else joined(before, new) for before, new in zip(layers, news, strict=True)]
        return x_btnd, Past(start + x_btnd.shape[1], kept)

    def _run(self, x_btnd: Tensor, past: Past | None) -> tuple[Tensor, list[KeysValues | None]]:
        start, layers = past or (0, [None] * len(self.blocks))
        stop = start + x_btnd.shape[1]
        if stop > self.frames:
            raise ValueError(f"{stop} frames, but this transformer has positions for {self.frames}")
        x_btnd = self.norm_in(x_btnd) + self.space_nd + self.time_td[start:stop, None]
        news = []
        for block, before in zip(self.blocks, layers, strict=True):
            x_btnd, new = block(x_btnd, before)
            news.append(new)
        return self.norm(x_btnd), news
