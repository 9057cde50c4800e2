"""The ViT of I-JEPA, V-JEPA and V-JEPA 2: a picture or a clip in, one token per patch or tubelet out. No class token.

Module and parameter names are those of the released code (facebookresearch/ijepa, vision_transformer.py), so that
its numbers and its weights can be compared with ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.nn.attention import MLP, Attention
from lit_wm.nn.patches import check_patch, sincos_2d, sincos_3d

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
        self,
        x_bld: Tensor,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor, Past]:
        """Attend.

        Args:
            x_bld: (B,L,D).
            rotary: from :func:`rotary_table`; None for tokens that carry their position already.
            mask: broadcastable to (B,heads,L,M+L) bool, True where attention is allowed.
            past: what an earlier call returned for M tokens that come first.
            wanted: only so many last tokens look (without ``rotary`` and ``mask``); None: all.

        Returns:
            (B,L,D) or (B,wanted,D), and the keys and values of all M+L tokens.
        """
        b, n, d = x_bld.shape
        if wanted is None:
            q, k, v = self.qkv(x_bld).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        else:
            (w_q, w_kv), (b_q, b_kv) = (x.split((d, 2 * d)) for x in (self.qkv.weight, self.qkv.bias))
            k, v = F.linear(x_bld, w_kv, b_kv).view(b, n, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            n = wanted
            q = F.linear(x_bld[:, -n:], w_q, b_q).view(b, n, self.heads, d // self.heads).transpose(1, 2)
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
        self,
        x_bld: Tensor,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        past: Past | None = None,
        wanted: int | None = None,
    ) -> tuple[Tensor, Past]:
        """As :meth:`RotaryAttention.forward`."""
        attended, past = self.attn(self.norm1(x_bld), rotary, mask, past, wanted)
        x_bld = (x_bld if wanted is None else x_bld[:, -wanted:]) + attended
        return x_bld + self.mlp(self.norm2(x_bld)), past


class PatchEmbed(nn.Module):
    """Non-overlapping patches or tubelets to vectors by one strided convolution: (M,C,H,W) or (M,C,T,H,W) -> (M,N,D).

    Tokens are numbered frame by frame, row by row.
    """

    def __init__(self, patch: int, channels: int, dim: int, tubelet: int | None = None) -> None:
        super().__init__()
        convolution = nn.Conv2d if tubelet is None else nn.Conv3d
        window = (patch, patch) if tubelet is None else (tubelet, patch, patch)
        self.proj = convolution(channels, dim, window, window)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The encoder of I-JEPA (arXiv:2301.08243, section 3) and V-JEPA: patches + fixed sine-cosine positions -> blocks -> LayerNorm.

    Args:
        size: (H,W) of the pictures; both divisible by ``patch``.
        channels: colours.
        patch: side of a patch.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads.
        frames: length of the clips that are encoded together (V-JEPA 16); None: pictures.
        tubelet: frames in a token; divides ``frames`` (V-JEPA 2).
        class_token: a learned token without a place comes before all others.

    Raises:
        ValueError: if the picture is not divisible by the patch, the frames by the tubelet, or the width by the heads.
    """

    def __init__(
        self,
        size: tuple[int, int],
        channels: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        frames: int | None = None,
        tubelet: int = 2,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.grid = check_patch(size, patch)
        if frames is not None and (frames < tubelet or frames % tubelet):
            raise ValueError(f"{frames} frames are not divisible by tubelets of {tubelet}")
        self.times = 1 if frames is None else frames // tubelet
        self.patch_embed = PatchEmbed(patch, channels, dim, None if frames is None else tubelet)
        positions = sincos_2d(*self.grid, dim) if frames is None else sincos_3d(self.times, *self.grid, dim)
        self.register_buffer("pos_embed", positions[None])
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        initialise(self, self.blocks)

    def forward(self, x: Tensor, keep_mk: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            x: (M,C,H,W) float pictures, or (M,C,T,H,W) clips.
            keep_mk: (M,K) numbers of the tokens that are encoded; the others are never seen. None: all N.

        Returns:
            (M,N,D) tokens, or (M,K,D); the class token, if there is one, before them.
        """
        x_mnd = self.patch_embed(x) + self.pos_embed
        if keep_mk is not None:
            x_mnd = take(x_mnd, keep_mk)
        if self.class_token is not None:
            x_mnd = torch.cat([self.class_token.expand(len(x_mnd), -1, -1), x_mnd], 1)
        for block in self.blocks:
            x_mnd, _ = block(x_mnd)
        return self.norm(x_mnd)


def take(x_bnd: Tensor, index_bk: Tensor) -> Tensor:
    """(B,N,D) tokens, of which each row keeps those that its (B,K) numbers say: (B,K,D)."""
    return x_bnd.gather(1, index_bk.unsqueeze(-1).expand(-1, -1, x_bnd.shape[-1]))


@torch.no_grad()
def initialise(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Truncated normal of 0.02, zero biases; layer i's residual outputs divided by sqrt(2 i), as BEiT and I-JEPA mean it.

    I-JEPA's released ``init_model`` draws every Linear again afterwards and so undoes the division; we do not.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    for i, block in enumerate(blocks, 1):
        block.attn.proj.weight.div_(math.sqrt(2 * i))
        block.mlp.fc2.weight.div_(math.sqrt(2 * i))
