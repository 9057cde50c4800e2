"""The predictor of LeWM: one vector a frame, a causal transformer, and actions that modulate its layers (AdaLN-zero)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_wm.jepa.encoders import Projector
from lit_wm.jepa.vit import Past


class ActionEncoder(nn.Module):
    """A linear map to 10 numbers and a two-layer perceptron: LeWM's ``Embedder`` (lucas-maes/le-wm)."""

    def __init__(self, actions: int, dim: int, smoothed: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Conv1d(actions, smoothed, 1)
        self.embed = nn.Sequential(nn.Linear(smoothed, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, action_bta: Tensor) -> Tensor:
        """(B,T,A) -> (B,T,D)."""
        return self.embed(F.linear(action_bta, self.patch_embed.weight.squeeze(-1), self.patch_embed.bias))


class ConditionalAttention(nn.Module):
    """Attention with a LayerNorm of its own before it, no biases on queries, keys and values."""

    def __init__(self, dim: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, dim), nn.Dropout(dropout))

    def forward(self, x_btd: Tensor, mask: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        b, t, _ = x_btd.shape
        q, k, v = self.to_qkv(self.norm(x_btd)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.to_out(x.transpose(1, 2).flatten(2)), (k, v)


class ConditionalBlock(nn.Module):
    """A transformer block whose norms are shifted and scaled, and whose branches are gated, by the condition (AdaLN-zero, DiT).

    The modulation begins at zero, so that the block begins as the identity. Attention and perceptron normalise once more what was
    modulated, as the released code does.
    """

    def __init__(self, dim: int, heads: int, head_width: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = ConditionalAttention(dim, heads, head_width, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = nn.Module()
        self.mlp.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, mlp),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp, dim),
            nn.Dropout(dropout),
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        nn.init.zeros_(self.adaLN_modulation[1].weight)
        nn.init.zeros_(self.adaLN_modulation[1].bias)

    def forward(self, x_btd: Tensor, c_btd: Tensor, mask: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c_btd).chunk(6, -1)
        attended, past = self.attn(self.norm1(x_btd) * (1 + scale_a) + shift_a, mask, past)
        x_btd = x_btd + gate_a * attended
        return x_btd + gate_m * self.mlp.net(self.norm2(x_btd) * (1 + scale_m) + shift_m), past


class ConditionalTransformer(nn.Module):
    """LeWM's ``Transformer``: blocks at a width of their own, between linear maps where that is another one."""

    def __init__(self, dim: int, width: int, depth: int, heads: int, head_width: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList([ConditionalBlock(width, heads, head_width, mlp, dropout) for _ in range(depth)])
        same = dim == width
        self.input_proj = nn.Identity() if same else nn.Linear(dim, width)
        self.cond_proj = nn.Identity() if same else nn.Linear(dim, width)
        self.output_proj = nn.Identity() if same else nn.Linear(width, dim)

    def forward(self, x_bte: Tensor, c_bte: Tensor, mask: Tensor, past: list[Past] | None) -> tuple[Tensor, list[Past]]:
        x_btd, c_btd, seen = self.input_proj(x_bte), self.cond_proj(c_bte), []
        for i, layer in enumerate(self.layers):
            x_btd, kept = layer(x_btd, c_btd, mask, past[i] if past else None)
            seen.append(kept)
        return self.output_proj(self.norm(x_btd)), seen


class ConditionalPredictor(nn.Module):
    """LeWM's predictor (arXiv:2603.19312; lucas-maes/le-wm): z_{<=t}, a_{<=t} -> z_{t+1}, at most ``history`` frames.

    Answers as :class:`~lit_wm.jepa.predictor.FrameCausalPredictor`, with one vector a frame (N = 1).

    Args:
        dim: width of the vectors.
        width: width inside.
        depth: number of blocks.
        heads: attention heads (LeWM 16).
        head_width: width of each (LeWM 64), whatever ``width`` is.
        mlp: hidden width of the blocks' perceptrons (LeWM 2048).
        history: most frames seen together (LeWM 3).
        actions: width of an action; 0: none, and nothing modulates.
        hidden: of a projector behind the transformer (LeWM 2048); 0: none.
        dropout: LeWM .1.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        heads: int,
        head_width: int,
        mlp: int,
        history: int,
        actions: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.action_encoder = ActionEncoder(actions, dim) if actions else None
        self.pos_embedding = nn.Parameter(torch.randn(1, history, dim))
        self.dropout = nn.Dropout(dropout)
        self.transformer = ConditionalTransformer(dim, width, depth, heads, head_width, mlp, dropout)
        self.pred_proj = Projector(dim, hidden, dim) if hidden else nn.Identity()

    def forward(
        self, z_bt1d: Tensor, conditions: Mapping[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,1,D) -> (B,T,1,D), entry t being the prediction of the frame after frame t; and keys and values.

        Args:
            z_bt1d: vectors of T consecutive frames.
            conditions: ``action`` (B,T,A), taken after the frames; nothing without actions.
            mask: (B,T,S+T) or (1,T,S+T) bool, rows of :func:`~lit_wm.jepa.predictor.frame_mask`.
            past: of S earlier frames.
        """
        z_btd = z_bt1d.squeeze(2)
        t = z_btd.shape[1]
        first = mask.shape[2] - t
        c_btd = torch.zeros_like(z_btd) if self.action_encoder is None else self.action_encoder(conditions["action"])
        x_btd = self.dropout(z_btd + self.pos_embedding[:, first : first + t])
        predicted_btd, past = self.transformer(x_btd, c_btd, mask.unsqueeze(1), past)
        return self.pred_proj(predicted_btd).unsqueeze(2), past

    def first_frames(self, past: list[Past], frames: int) -> list[Past]:
        """Keys and values of the first few frames alone: later ones never entered into them."""
        return [(k[:, :, :frames], v[:, :, :frames]) for k, v in past]
