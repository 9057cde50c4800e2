"""Multi-head self-attention and the transformer MLP, with the parameter names of the ViT reference code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
SHORT = (
    32  # positions up to which plain products are faster than the fused kernel (16 of width 32 on a CPU: 23 ms for 29)
)


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
        self, x_bnd: Tensor, past: KeysValues | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Attend.

        Args:
            x_bnd: (B,N,D) tokens.
            past: keys and values (B,heads,M,D/heads) of M earlier positions, seen by every new position.
            mask: (N,M+N) bool, True where attention is allowed; overrides ``causal``.

        Returns:
            (B,N,D), and the keys and values of the N new positions (:func:`joined` puts them behind ``past``).
        """
        b, n, d = x_bnd.shape
        q, k, v = self.qkv(x_bnd).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        x = attend(q, k, v, past, mask, self.causal)
        return self.proj(x.transpose(1, 2).reshape(b, n, d)), (k, v)


class TimeAttention(Attention):
    """Causal attention along the time of each place: (B,T,N,D) tokens stay where they lie in memory.

    Args:
        dim, heads, qk_norm: as for :class:`Attention`.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__(dim, heads, causal=True, qk_norm=qk_norm)

    def forward(self, x_btnd: Tensor, past: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
        """(B,T,N,D) -> (B,T,N,D), and the new keys and values (B,N*heads,T,D/heads)."""
        b, t, n, d = x_btnd.shape
        weights, biases = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q, k, v = (  # one product each, so that places and heads are one axis without copying
            F.linear(x_btnd, w, bias).view(b, t, n * self.heads, d // self.heads).transpose(1, 2)
            for w, bias in zip(weights, biases, strict=True)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        x = attend(q, k, v, past, causal=True)
        return self.proj(x.transpose(1, 2).reshape(b, t, n, d)), (k, v)


def joined(past: KeysValues | None, new: KeysValues) -> KeysValues:
    """Keys and values of earlier positions and, behind them, of new ones."""
    return new if past is None else (torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2))


def attend(
    q: Tensor, k: Tensor, v: Tensor, past: KeysValues | None = None, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, over the new positions and those of ``past``.

    Args:
        q, k, v: (B,heads,N,D) of the new positions.
        past: keys and values (B,heads,M,D) that every new position sees.
        mask: (N,M+N) bool, True where attention is allowed; overrides ``causal``.
        causal: new position i sees new positions <= i only.

    Returns:
        (B,heads,N,D).
    """
    n, m = q.shape[2], 0 if past is None else past[0].shape[2]
    if mask is None and (causal or m) and n + m <= SHORT:
        return short_attention(q, k, v, past, causal and n > 1)
    if past is not None:
        k, v = joined(past, (k, v))
        if causal and n > 1 and mask is None:
            mask = torch.ones(n, m + n, dtype=torch.bool, device=q.device).tril(m)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None and n > 1)


def short_attention(q: Tensor, k: Tensor, v: Tensor, past: KeysValues | None, causal: bool) -> Tensor:
    """:func:`attend` for a few positions, where two batched products beat the fused kernel, and the past is not moved."""
    b, heads, n, d = q.shape
    q, k, v = (x.reshape(b * heads, n, d) for x in (q, k, v))
    hidden_nn = torch.full((n, n), -torch.inf if causal else 0.0, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(hidden_nn, q, k.mT, alpha=d**-0.5)
    if past is None:
        x = scores.softmax(-1) @ v
    else:
        k_past, v_past = (x.reshape(b * heads, -1, d) for x in past)
        m = k_past.shape[1]
        weights = torch.cat([q @ k_past.mT * d**-0.5, scores], -1).softmax(-1)
        x = weights[..., :m] @ v_past + weights[..., m:] @ v
    return x.view(b, heads, n, d)


class MLP(nn.Module):
    """Linear, exact GELU, Linear (the transformer feed-forward layer)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
