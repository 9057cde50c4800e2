"""How rollouts are steered: every model by what it understands.

* ``actions``: the environment's own actions;
* ``mapped codes``: for a model with its own codes, each action's most frequent code on training clips. Fair, the headline;
* ``oracle codes``: codes inferred from the **true future**. Privileged, and marked so wherever they are printed;
* ``nothing``: a model that takes no actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.experience import ActionSpace, ExperienceSpec, action_vectors
from lit_wm.contract import Batch, WorldModelContract
from lit_wm.evaluation.rollouts import infer_codes
from lit_wm.evaluation.settings import Settings


def action_classes(action: Tensor | None, space: ActionSpace) -> Tensor | None:
    """Each action as one number: (B,T,...) -> (B,T) int64; None for continuous actions, and where there are none."""
    if action is None or space.kind == "continuous":
        return None
    if space.kind == "discrete":
        return action.long()
    number = torch.zeros_like(action[..., 0])
    for i, size in enumerate(space.sizes):
        number = number * size + action[..., i]
    return number.long()


def fit_code_of_action(action: Tensor, code: Tensor, valid: Tensor) -> dict[int, int]:
    """The most frequent code of each action, by counts.

    Args:
        action: (n,) classes.
        code: (n,) codes of the same transitions.
        valid: (n,) bool; void actions are left out.

    Returns:
        action -> code; the key -1 holds the most frequent code of all, for actions never seen.
    """
    action, code = action[valid], code[valid]
    table = {-1: int(code.mode().values)}
    return table | {int(a): int(code[action == a].mode().values) for a in action.unique()}


def environment_controls(clips: Batch, space: ActionSpace, settings: Settings) -> Tensor:
    """(B,K,A) float vectors; entry 0 is taken after the last context frame."""
    vectors = action_vectors(clips["action"], clips["is_last"], space)
    return vectors[:, settings.context - 1 : settings.context - 1 + settings.steps]


def mapped_controls(clips: Batch, space: ActionSpace, table: dict[int, int], settings: Settings) -> Tensor:
    """(B,K) codes by :func:`fit_code_of_action`."""
    action = action_classes(clips["action"], space)[:, settings.context - 1 : settings.context - 1 + settings.steps]
    return torch.tensor([[table.get(int(a), table[-1]) for a in row] for row in action])


def oracle_controls(codes: Tensor, settings: Settings) -> Tensor:
    """(B,K) of (B,T-1) codes inferred from the true future."""
    return codes[:, settings.context - 1 : settings.context - 1 + settings.steps]


def transitions(clips: Batch) -> Tensor:
    """(B,T-1) bool: frame t+1 follows frame t by an action (no episode ends between them)."""
    return ~clips["is_last"][:, :-1] & ~clips["is_first"][:, 1:]


class Steering:
    """What one model's rollouts are steered by.

    Args:
        model: whose ``action_space`` decides.
        clips: ``train``, ``val``, ``test``.
        spec: of the data.
        settings: context and horizons.
        judged: False for the floor, of which only fair rollouts are wanted.

    Attributes:
        name: ``actions``, ``mapped codes`` or ``nothing``; ``oracle codes`` where actions cannot be counted, or are none.
        fair: split -> controls of the headline.
        oracle: codes of the test clips' true future; None for a model without codes.
        codes: split -> (B,T-1) codes read off whole clips; empty likewise.
    """

    def __init__(
        self,
        model: WorldModelContract,
        clips: Mapping[str, Batch],
        spec: ExperienceSpec,
        settings: Settings,
        judged: bool = True,
    ) -> None:
        action = action_classes(clips["train"].get("action"), spec.action)
        mappable = action is not None
        needed = ("train", "test") if judged and mappable else ("train",) if mappable else tuple(clips)
        self.codes: dict[str, Tensor] = {}
        for split in needed:
            if (found := infer_codes(model, clips[split], settings)) is not None:
                self.codes[split] = found
        self.oracle: Tensor | None = None
        if model.action_space == "environment":
            self.name = "actions"
            self.fair = {split: environment_controls(clips[split], spec.action, settings) for split in clips}
        elif model.action_space == "none":
            self.name = "nothing"
            self.fair = {s: torch.zeros(len(clips[s]["is_first"]), settings.steps, dtype=torch.long) for s in clips}
        elif not mappable:
            self.name = "oracle codes"
            self.fair = {split: oracle_controls(codes, settings) for split, codes in self.codes.items()}
        else:
            self.name = "mapped codes"
            seen = transitions(clips["train"])
            table = fit_code_of_action(action[:, :-1].flatten(), self.codes["train"].flatten(), seen.flatten())
            self.fair = {split: mapped_controls(clips[split], spec.action, table, settings) for split in clips}
            self.oracle = oracle_controls(self.codes["test"], settings) if judged else None
