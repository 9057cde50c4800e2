"""The ViT of I-JEPA, V-JEPA and V-JEPA 2: one picture in, one token per patch out. No class token.

Module and parameter names are those of the released code (facebookresearch/ijepa, vision_transformer.py), so that
its numbers and its weights can be compared with ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.nn.attention import MLP, Attention
from lit_wm.nn.patches import check_patch, sincos_2d

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (L, head width)
Past = tuple[Tensor, Tensor]  # keys and values of earlier tokens, each (B, heads, M, head width)


def rotary_table(time: Tensor, row: Tensor, column: Tensor, width: int) -> Rotary:
    """Angles of V-JEPA 2's three-axis rotary positions (arXiv:2506.09985, section 2.1; app code ``ACRoPEAttention``).

    A third of each head turns with time, a third with the row, a third with the column; what is left over (the width is
    cut to even thirds) does not turn. The released code repeats the frequencies in halves while it rotates neighbouring
    pairs; this is kept, because its weights were trained with it.

    Args:
        time: (L,) frame index of each token; tokens without a place (actions) have row = column = 0.
        row: (L,) in patches.
        column: (L,) in patches.
        width: width of one head; at least 6.

    Returns:
        Cosines and sines, (L, width).
    """
    third = 2 * (width // 3 // 2)
    if third == 0:
        raise ValueError(f"rotary positions need heads at least 6 wide, not {width}")
    rate = 10000.0 ** (-torch.arange(third // 2, device=time.device) / (third / 2))
    angle = [(position.float()[:, None] * rate).repeat(1, 2) for position in (time, row, column)]
    angle.append(angle[0].new_zeros(len(time), width - 3 * third))
    angle_ld = torch.cat(angle, 1)
    return angle_ld.cos(), angle_ld.sin()


def rotate(x_bhld: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries or keys: each neighbouring pair of channels (a, b) becomes (a cos - b sin, b cos + a sin)."""
    a, b = x_bhld.unflatten(-1, (-1, 2)).unbind(-1)
    return x_bhld * rotary[0] + torch.stack([-b, a], -1).flatten(-2) * rotary[1]


class RotaryAttention(Attention):
    """Multi-head self-attention whose queries and keys may be turned by their positions, under any mask."""

    def forward(
        self, x_bld: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Attend.

        Args:
            x_bld: (B,L,D).
            rotary: from :func:`rotary_table`; None for tokens that carry their position already.
            mask: broadcastable to (B,heads,L,M+L) bool, True where attention is allowed.
            past: what an earlier call returned for M tokens that come first.

        Returns:
            (B,L,D), and the keys and values of all M+L tokens.
        """
        b, n, d = x_bld.shape
        q, k, v = self.qkv(x_bld).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).reshape(b, n, d)), (k, v)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm1 x), then x + mlp(norm2 x). LayerNorm eps 1e-6, exact GELU."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RotaryAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, 4 * dim)

    def forward(
        self, x_bld: Tensor, rotary: Rotary | None = None, mask: Tensor | None = None, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """As :meth:`RotaryAttention.forward`."""
        attended, past = self.attn(self.norm1(x_bld), rotary, mask, past)
        x_bld = x_bld + attended
        return x_bld + self.mlp(self.norm2(x_bld)), past


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors by one strided convolution: (M,C,H,W) -> (M,N,D), patches row by row."""

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, x_mchw: Tensor) -> Tensor:
        return self.proj(x_mchw).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """I-JEPA's encoder (arXiv:2301.08243, section 3): patches + fixed 2-D sine-cosine positions -> blocks -> LayerNorm.

    Args:
        size: (H,W) of the pictures; both divisible by ``patch``.
        channels: colours.
        patch: side of a patch.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads.

    Raises:
        ValueError: if the picture is not divisible by the patch, or the width by the heads.
    """

    def __init__(self, size: tuple[int, int], channels: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.grid = check_patch(size, patch)
        self.patch_embed = PatchEmbed(patch, channels, dim)
        self.register_buffer("pos_embed", sincos_2d(*self.grid, dim)[None])
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        initialise(self, self.blocks)

    def forward(self, x_mchw: Tensor) -> Tensor:
        """(M,C,H,W) float pictures -> (M,N,D) tokens."""
        x_mnd = self.patch_embed(x_mchw) + self.pos_embed
        for block in self.blocks:
            x_mnd, _ = block(x_mnd)
        return self.norm(x_mnd)


@torch.no_grad()
def initialise(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Truncated normal of 0.02, zero biases; layer i's residual outputs divided by sqrt(2 i), as BEiT and I-JEPA mean it.

    I-JEPA's released ``init_model`` draws every Linear again afterwards and so undoes the division; we do not.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    for i, block in enumerate(blocks, 1):
        block.attn.proj.weight.div_(math.sqrt(2 * i))
        block.mlp.fc2.weight.div_(math.sqrt(2 * i))
