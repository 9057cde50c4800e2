"""What a plan costs: how far from the goal the world model imagines to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datamodules.experience import Factor
from lit_wm.contract import Batch, State, WorldModelContract, at, map_state
from lit_wm.errors import UserError
from lit_wm.evaluation.probes import Split, fit_state_probe

Embedding = Callable[[State], Tensor]  # states (...) -> (..., D) vectors in which distance means something


def latent(model: WorldModelContract) -> Embedding:
    """The model's own representation of the present frame: its tokens in one row, or its features where it has no tokens."""

    def embed(state: State) -> Tensor:
        tokens = model.feature_map(state)
        return model.features(state) if tokens is None else tokens.flatten(-2)

    return embed


class ImaginedDistance:
    """Squared distance to the goal, averaged over the numbers of the embedding, of what is imagined.

    Args:
        model: imagines.
        state: leading axis (B,): where each of B problems stands.
        goal_bd: (B,D) the embedded goals.
        embed: states to (..., D).
        hold: every planned action is done for so many steps: an action block. Long horizons of few decisions.
        along: 0 counts the last imagined state alone (DINO-WM, LeWM); 1 the mean over all states that end a block (eb_jepa); between
            them, a mixture.
        most: rollouts imagined at once: bounds memory, not results.
    """

    def __init__(
        self,
        model: WorldModelContract,
        state: State,
        goal_bd: Tensor,
        embed: Embedding,
        hold: int = 1,
        along: float = 0.0,
        most: int = 4096,
    ) -> None:
        self.model, self.state, self.goal_bd, self.embed = model, state, goal_bd, embed
        self.hold, self.along, self.most = hold, along, most

    def __call__(self, actions_bnha: Tensor) -> Tensor:
        """(B,N,H,A) action vectors -> (B,N) costs; differentiable in the actions where the model is."""
        b, n = actions_bnha.shape[:2]
        steps = actions_bnha.repeat_interleave(self.hold, 2).flatten(0, 1)
        rows = torch.arange(b, device=steps.device).repeat_interleave(n)
        found = []
        for part in torch.arange(b * n, device=steps.device).split(self.most):
            state = map_state(self.state, lambda x, part=part: x[rows[part]])
            future = self.model.imagine(state, steps[part], 1, temperature=0.0)
            ends = map_state(future, lambda x: x[:, 0, self.hold - 1 :: self.hold])
            error_kh = (self.embed(ends) - self.goal_bd[rows[part]].unsqueeze(1)).square().mean(-1)
            found.append((1 - self.along) * error_kh[:, -1] + self.along * error_kh.mean(1))
        return torch.cat(found).view(b, n)


def probed(
    model: WorldModelContract, train: Batch, val: Batch, factors: Sequence[Factor], names: Sequence[str]
) -> Embedding:
    """What linear probes read of the true state from the features: distances in pixels, for which labels are needed.

    Args:
        model: in evaluation mode.
        train: clips (B,T,...) with ``state``, on whose last frames the probes are fitted.
        val: likewise, for their penalty.
        factors: of ``state``.
        names: of those that are read.

    Raises:
        UserError: a factor that is not there, or that cannot be fitted.
    """
    known = [factor.name for factor in factors]
    if missing := [name for name in names if name not in known]:
        raise UserError(f"the data's state has no {missing[0]} for the planner's cost; it has {', '.join(known)}")
    columns = [known.index(name) for name in names]
    splits = []
    for clips in (train, val):
        with torch.no_grad():
            features = model.features(at(model.observe(clips), -1))
        splits.append(Split(features.float(), clips["state"][:, -1, columns]))
    probe = fit_state_probe(*splits, tuple(factors[i] for i in columns))
    for name, fitted in zip(names, probe.factors, strict=True):
        if isinstance(fitted, str):
            raise UserError(f"{name} for the planner's cost is {fitted}")

    def embed(state: State) -> Tensor:
        features = model.features(state)
        z = probe.projection(features.flatten(0, -2).float())
        read = torch.stack([fitted.predict(z) for fitted in probe.factors], -1)
        return read.view(*features.shape[:-1], len(names)).to(features)

    return embed
