"""Multi-head self-attention and the transformer MLP, with the parameter names of the ViT reference code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over the second-last axis.

    Args:
        dim: width; must be divisible by ``heads``.
        heads: number of heads.
        causal: position i attends to positions <= i only.
        bias: bias of the joint query-key-value projection.
        qk_norm: RMS-normalise queries and keys (Genie, section 2.1, for stability at scale).
    """

    def __init__(self, dim: int, heads: int, causal: bool = False, bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention width {dim} is not divisible by {heads} heads")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(
        self, x_bnd: Tensor, past: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend.

        Args:
            x_bnd: (B,N,D) tokens.
            past: keys and values (B,heads,M,D/heads) of M earlier positions, seen by every new position.
            mask: (N,M+N) bool, True where attention is allowed; overrides ``causal``.

        Returns:
            (B,N,D), and the keys and values of all M+N positions, to be passed as ``past`` next time.
        """
        b, n, d = x_bnd.shape
        q, k, v = self.qkv(x_bnd).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        causal = self.causal and mask is None and n > 1
        if past is not None:
            if causal:  # new positions see all of the past, and each other causally
                m = past[0].shape[2]
                mask = torch.ones(n, m + n, dtype=torch.bool, device=x_bnd.device).tril(m)
                causal = False
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(x.transpose(1, 2).reshape(b, n, d)), (k, v)


class MLP(nn.Module):
    """Linear, exact GELU, Linear (the transformer feed-forward layer)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
