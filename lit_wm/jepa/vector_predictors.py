"""Small predictors over one vector a frame. They answer as the frame-causal predictor, with N = 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_wm.jepa.vit import Past


class LinearPredictor(nn.Module):
    """z_{t+1} = z_t + W a_t: what a method does without a predictor.

    Args:
        dim: D.
        actions: width of an action; 0: none, and the prediction is z_t.
    """

    def __init__(self, dim: int, actions: int) -> None:
        super().__init__()
        self.action = nn.Linear(actions, dim, bias=False) if actions else None

    def forward(
        self, z_bt1d: Tensor, conditions: Mapping[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,1,D) -> (B,T,1,D): every frame by itself."""
        return (z_bt1d if self.action is None else z_bt1d + self.action(conditions["action"]).unsqueeze(2)), []

    def first_frames(self, past: list[Past], frames: int) -> list[Past]:
        """Nothing is remembered."""
        return []


class RecurrentPredictor(nn.Module):
    """z_{t+1} = GRU cell(W a_t; z_t), as PLDM (arXiv:2502.14819) and eb_jepa: the representation is the cell's state.

    Args:
        dim: D.
        actions: width of an action; 0: the cell's input is a learned constant.
        width: of the embedded action.
    """

    def __init__(self, dim: int, actions: int, width: int) -> None:
        super().__init__()
        self.action = nn.Linear(max(actions, 1), width)
        self.cell = nn.GRUCell(width, dim)
        self.acts = actions > 0

    def forward(
        self, z_bt1d: Tensor, conditions: Mapping[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,1,D) -> (B,T,1,D): every frame by itself."""
        b, t, _, d = z_bt1d.shape
        given = conditions["action"] if self.acts else z_bt1d.new_zeros(b, t, 1)
        return self.cell(self.action(given).flatten(0, 1), z_bt1d.reshape(-1, d)).view(b, t, 1, d), []

    def first_frames(self, past: list[Past], frames: int) -> list[Past]:
        """Nothing is remembered beside the representation."""
        return []


class PerceptronPredictor(nn.Module):
    """z_{t+1} = MLP(z_{t-history+1}, ..., z_t, a_t); a frame that belongs to no episode of its own is replaced by the next one.

    Args:
        dim: D.
        actions: width of an action; 0: none.
        history: frames looked at.
        width: of the hidden layers.
        depth: their number.
    """

    def __init__(self, dim: int, actions: int, history: int, width: int, depth: int) -> None:
        super().__init__()
        self.history, self.acts = history, actions > 0
        layers: list[nn.Module] = []
        before = history * dim + actions
        for _ in range(depth):
            layers += [nn.Linear(before, width), nn.GELU()]
            before = width
        self.net = nn.Sequential(*layers, nn.Linear(before, dim))

    def forward(
        self, z_bt1d: Tensor, conditions: Mapping[str, Tensor], mask: Tensor, past: list[Past] | None = None
    ) -> tuple[Tensor, list[Past]]:
        """(B,T,1,D) -> (B,T,1,D), and the vectors of all frames so far.

        Args:
            z_bt1d: vectors of T consecutive frames.
            conditions: ``action`` (B,T,A), taken after the frames.
            mask: (B,T,S+T) or (1,T,S+T) bool: which frames belong to the same episode, and are not later.
            past: of S earlier frames.
        """
        z_btd = z_bt1d.squeeze(2)
        t = z_btd.shape[1]
        seen_bsd = z_btd if not past else torch.cat([past[0][0], z_btd], 1)
        first = seen_bsd.shape[1] - t
        looked = [z_btd]
        for back in range(1, self.history):
            index = torch.arange(first, first + t, device=z_btd.device) - back
            there = mask[:, torch.arange(t), index.clamp_min(0)] & (index >= 0)
            looked.append(torch.where(there.unsqueeze(-1), seen_bsd[:, index.clamp_min(0)], looked[-1]))
        if self.acts:
            looked.append(conditions["action"])
        return self.net(torch.cat(looked, -1)).unsqueeze(2), [(seen_bsd, seen_bsd)]

    def first_frames(self, past: list[Past], frames: int) -> list[Past]:
        """The vectors of the first few frames alone."""
        return [(z[:, :frames], z[:, :frames]) for z, _ in past]
