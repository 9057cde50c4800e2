"""The frame-causal predictor of V-JEPA 2-AC: patch tokens of the past and actions in, the next frame's tokens out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.jepa.vit import Block, Past, initialise, rotary_table


def frame_mask(episode_bt: Tensor) -> Tensor:
    """Which frames a frame may see: itself, and earlier ones of the same episode.

    Args:
        episode_bt: (B,T) a number that differs between episodes, for example the running count of ``is_first``.

    Returns:
        (B,T,T) bool, row = the frame that looks, column = the frame looked at.
    """
    t = episode_bt.shape[1]
    past = torch.ones(t, t, dtype=torch.bool, device=episode_bt.device).tril()
    return (episode_bt[:, :, None] == episode_bt[:, None, :]) & past


class FrameCausalPredictor(nn.Module):
    """V-JEPA 2-AC's predictor (arXiv:2506.09985, section 3; facebookresearch/vjepa2, ``ac_predictor.py``).

    The sequence holds, frame by frame, one token per condition and then N patch tokens. All tokens of frame t attend to
    all tokens of the frames <= t; positions are rotary in time, row and column. What comes out at frame t's patches is
    the prediction of frame t+1's patches.

    Args:
        grid: (rows, columns) of patches; N = rows * columns.
        dim: width of the encoder's tokens.
        width: width inside.
        depth: number of blocks.
        heads: attention heads.
        conditions: name -> width of what enters besides pictures, in order. ``{"action": A}``, or ``{}`` for the
            action-free predictor (the reference has ``{"action": 7, "state": 7}``, the state being the arm's pose).
        tile: also add each condition's token to every patch token of its frame, as DINO-WM (arXiv:2411.04983) tiles
            actions over the patches; False as the reference.

    Raises:
        ValueError: if the width is not divisible by the heads, or the heads are too narrow.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        dim: int,
        width: int,
        depth: int,
        heads: int,
        conditions: Mapping[str, int],
        tile: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.conditions, self.tile, self.head_width = grid, tuple(conditions), tile, width // heads
        if self.head_width < 6:
            raise ValueError(f"predictor heads are {self.head_width} wide, three-axis rotary positions need at least 6")
        self.predictor_embed = nn.Linear(dim, width)
        for name, size in conditions.items():
            self.add_module(f"{name}_encoder", nn.Linear(size, width))
        self.predictor_blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, dim)
        initialise(self, self.predictor_blocks)

    def forward(
        self, z_btnd: Tensor, conditions: Mapping[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """Predict every next frame at once.

        Args:
            z_btnd: (B,T,N,D) normalised tokens of T consecutive frames.
            conditions: name -> (B,T,A); ``conditions["action"][:, t]`` is taken after frame t.
            mask: (B,T,S+T) or (1,T,S+T) bool, rows of :func:`frame_mask`; S frames lie in the past.
            past: what an earlier call returned for those S frames, if there were any.

        Returns:
            (B,T,N,D), entry t being the prediction of the frame after frame t; and keys and values of S+T frames.
        """
        b, t, n, _ = z_btnd.shape
        extra = [self.get_submodule(f"{name}_encoder")(conditions[name]).unsqueeze(2) for name in self.conditions]
        x_btnp = self.predictor_embed(z_btnd)
        if self.tile:
            x_btnp = sum(extra, x_btnp)
        x_btmp = torch.cat([*extra, x_btnp], 2)
        m = x_btmp.shape[2]
        first = mask.shape[2] - t
        rotary = rotary_table(*self._positions(first, t, z_btnd.device), self.head_width)
        mask = mask.repeat_interleave(m, 1).repeat_interleave(m, 2).unsqueeze(1)
        x_blp, seen = x_btmp.flatten(1, 2), []
        for i, block in enumerate(self.predictor_blocks):
            x_blp, kept = block(x_blp, rotary, mask, past[i] if past else None)
            seen.append(kept)
        x_btnp = x_blp.view(b, t, m, -1)[:, :, m - n :]
        return self.predictor_proj(self.predictor_norm(x_btnp)), seen

    def first_frames(self, past: list[Past], frames: int) -> list[Past]:
        """Keys and values of the first few frames alone: later ones never entered into them."""
        tokens = frames * (len(self.conditions) + self.grid[0] * self.grid[1])
        return [(k[:, :, :tokens], v[:, :, :tokens]) for k, v in past]

    def _positions(self, first: int, frames: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(L,) time, row and column of every token; columns are stretched to the height of the grid, as the reference."""
        rows, columns = self.grid
        empty = torch.zeros(len(self.conditions), device=device)
        place = torch.arange(rows * columns, device=device)
        row = torch.cat([empty, place // columns]).repeat(frames)
        column = torch.cat([empty, (place % columns) * (rows / columns)]).repeat(frames)
        time = torch.arange(first, first + frames, device=device)
        return time.repeat_interleave(len(self.conditions) + rows * columns), row, column


def normalise(z: Tensor) -> Tensor:
    """Mean 0 and variance 1 per token, without affine parameters, eps 1e-5: targets, inputs and predictions alike."""
    return F.layer_norm(z, z.shape[-1:])


def roll_out(
    step: Callable[[Tensor, int, list[Past]], tuple[Tensor, list[Past]]],
    first_bnd: Tensor,
    past: list[Past],
    start: int,
    stop: int,
) -> Tensor:
    """Feed predictions back in place of frames (V-JEPA 2-AC's rollout; there ``start`` = 1 and ``auto_steps`` = 2).

    The keys and values of earlier frames do not change, so each step computes one frame only.

    Args:
        step: (frame (B,1,N,D), its number, past) -> (prediction (B,1,N,D) of the next frame, longer past).
        first_bnd: (B,N,D) the prediction of frame ``start``, which teacher forcing has made already.
        past: keys and values of the true frames 0 .. start-1.
        start: number of the first predicted frame.
        stop: number of the last one.

    Returns:
        (B, stop-start+1, N, D): frames ``start`` .. ``stop``.
    """
    rolled = [first_bnd.unsqueeze(1)]
    for t in range(start, stop):
        following, past = step(rolled[-1], t, past)
        rolled.append(following)
    return torch.cat(rolled, 1)
