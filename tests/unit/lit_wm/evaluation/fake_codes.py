"""World models with codes of known meaning, in the world of ``fake_worlds``."""

from __future__ import annotations

import torch
from fake_worlds import MOVES, SIZE, Coded, Oracle
from torch import Tensor


class Renamed(Coded):
    """The same codes under other names."""

    PERMUTATION = torch.tensor([11, 5, 0, 8, 7])

    def displacement(self, actions):
        return (actions[..., None] == self.PERMUTATION).float().argmax(-1)


class Noisy(Coded):
    """A share of the inferred codes is replaced by random ones. The same seed spoils the more the larger the share."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def infer_actions(self, batch):
        codes = super().infer_actions(batch)
        generator = torch.Generator().manual_seed(5)
        spoilt = torch.rand(codes.shape, generator=generator) < self.share
        return torch.where(spoilt, torch.randint(5, codes.shape, generator=generator), codes)


class Deaf(Coded):
    """Infers the right codes, and imagines that nothing obeys them; what jumps at random it lets jump at random."""

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        future = super().imagine(state, self.PERMUTATION[torch.zeros_like(actions)], samples, temperature, generator)
        if temperature:
            shape = future["xy"][..., 2, :].shape
            future["xy"][..., 2, :] = torch.randint(SIZE, shape, generator=generator)
        return future


class Elsewhere(Coded):
    """Codes that match the moves one to one, but do the opposite wherever the green dot is in the right half."""

    OPPOSITE = torch.tensor([0, 2, 1, 4, 3])

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        right = state["xy"][:, 1, 0] >= SIZE // 2
        opposite = self.PERMUTATION[self.OPPOSITE[self.displacement(actions)]]
        return super().imagine(state, torch.where(right[:, None], opposite, actions), samples, temperature, generator)


class Distracted(Coded):
    """Codes that say where the blue dot, the distractor, jumps to, and nothing of the agent."""

    def infer_actions(self, batch):
        x, y = self.observe(batch)["xy"][:, 1:, 2].unbind(-1)
        return y * SIZE + x

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        future = super().imagine(state, self.PERMUTATION[torch.zeros_like(actions)], samples, temperature, generator)
        future["xy"][..., 2, :] = torch.stack([actions % SIZE, actions // SIZE], -1)[:, None]
        return future


class Merged(Coded):
    """One code for left and right and one for up and down, which it takes for right and down."""

    def infer_actions(self, batch):
        return (self.displacement(super().infer_actions(batch)) + 1) // 2

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        return super().imagine(state, self.PERMUTATION[2 * actions], samples, temperature, generator)


class Split(Coded):
    """Two codes for every move, which of them being chance."""

    def infer_actions(self, batch):
        codes = super().infer_actions(batch)
        return 2 * codes + torch.randint(2, codes.shape, generator=torch.Generator().manual_seed(1))

    def imagine(self, state, actions, samples=1, temperature=1.0, generator=None):
        return super().imagine(state, actions // 2, samples, temperature, generator)


class Vectored(Oracle):
    """Continuous codes: how the agent moved, in a turned frame of axes. ``leaky`` ones add where the blue dot will be."""

    labels = ("frames",)
    action_space = "codes"
    TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]])

    def __init__(self, leaky: bool = False) -> None:
        super().__init__()
        self.leaky = leaky

    def infer_actions(self, batch) -> Tensor:
        xy = self.observe(batch)["xy"].float()
        moved = xy[:, :, 0].diff(dim=1) @ self.TURN
        return torch.cat([moved, xy[:, 1:, 2] / SIZE], -1) if self.leaky else moved

    def displacement(self, actions):
        moved = actions[..., :2] @ self.TURN.T
        return torch.cdist(moved, MOVES.float()).argmin(-1)


class Scribbler(Coded):
    """Imagines perfectly and draws nothing that could be read."""

    def decode(self, state):
        return torch.zeros_like(super().decode(state))
