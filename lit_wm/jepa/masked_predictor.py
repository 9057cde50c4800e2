"""The predictor of I-JEPA and V-JEPA: context tokens and empty places in, the representations of those places out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_wm.jepa.masks import Mask
from lit_wm.jepa.vit import Block, initialise, take
from lit_wm.nn.patches import sincos_2d, sincos_3d


class MaskedPredictor(nn.Module):
    """A narrow ViT over the context and, for each target, one mask token with the target's position (arXiv:2301.08243, section 3).

    Each set of targets is predicted in a pass of its own, from the same context. Module and parameter names are those of the
    released code; I-JEPA's ``mask_token`` is ``mask_tokens.0``.

    Args:
        grid: (T,H,W) tokens of the encoder; T = 1 with ``image``.
        image: positions are I-JEPA's in two dimensions, otherwise V-JEPA's in three.
        dim: width of the encoder's tokens.
        width: width inside (the papers: 384).
        depth: number of blocks.
        heads: attention heads.
        kinds: kinds of masks; each has a mask token of its own (V-JEPA: one for short, one for long masks).
        out: width of what is predicted; None: ``dim``.

    Raises:
        ValueError: if the width is not divisible by the heads.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        image: bool,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        kinds: int = 1,
        out: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError("a masked predictor needs at least 1 block: its mask tokens know nothing but their place")
        self.predictor_embed = nn.Linear(dim, width)
        self.mask_tokens = nn.ParameterList([nn.Parameter(torch.zeros(1, 1, width)) for _ in range(kinds)])
        positions = sincos_2d(*grid[1:], width) if image else sincos_3d(*grid, width)
        self.register_buffer("predictor_pos_embed", positions[None])
        self.predictor_blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, dim if out is None else out)
        initialise(self, self.predictor_blocks)
        if image:  # V-JEPA's begin at zero
            nn.init.trunc_normal_(self.mask_tokens[0], std=0.02)

    def forward(self, z_bkd: Tensor, mask: Mask, kind: int = 0) -> Tensor:
        """Predict.

        Args:
            z_bkd: (B,K,D) the context's tokens.
            mask: where they lie, and where the targets do.
            kind: number of the mask's kind.

        Returns:
            (B,M,L,D).
        """
        b, m, n = mask.targets_bml.shape
        position_bnp = self.predictor_pos_embed.expand(b, -1, -1)
        context_bkp = self.predictor_embed(z_bkd) + take(position_bnp, mask.context_bk)
        empty_blp = self.mask_tokens[kind] + take(position_bnp, mask.targets_bml.flatten(1))
        # (B,K+L,P) for every set of targets, the sets of a sample next to each other
        x_clp = torch.cat([context_bkp.repeat_interleave(m, 0), empty_blp.unflatten(1, (m, n)).flatten(0, 1)], 1)
        *blocks, last = self.predictor_blocks
        for block in blocks:
            x_clp, _ = block(x_clp)
        x_clp, _ = last(x_clp, wanted=n)  # what the context has become is not asked for
        return self.predictor_proj(self.predictor_norm(x_clp)).unflatten(0, (b, m))
