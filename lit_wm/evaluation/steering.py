"""How rollouts are steered: every model by what it understands.

* ``actions``: the environment's own actions;
* ``mapped codes``: for a model with its own codes, each action's most frequent code on training clips; of a model whose codes
  are vectors, each action's mean vector (as AdaWorld adapts to a new world). Fair, the headline;
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


def action_of_class(number: int, space: ActionSpace) -> Tensor:
    """The vector (A,) of the action that :func:`action_classes` calls by this number."""
    parts: list[int] = []
    for size in reversed(space.sizes):
        parts.insert(0, number % size)
        number //= size
    action = torch.tensor(parts[0] if space.kind == "discrete" else parts)
    return action_vectors(action, torch.tensor(False), space)


def fit_code_of_action(action: Tensor, code: Tensor, valid: Tensor) -> dict[int, Tensor]:
    """The code that stands for each action, by counts or by means.

    Args:
        action: (n,) classes.
        code: (n,) codes or (n,D) vectors of the same transitions.
        valid: (n,) bool; void actions are left out.

    Returns:
        action -> its most frequent code (), or its mean vector (D,); the key -1 holds that of all actions together, for
        actions never seen.
    """
    action, code = action[valid], code[valid]

    def typical(some: Tensor) -> Tensor:
        return some.mean(0) if some.is_floating_point() else some.mode().values

    return {-1: typical(code)} | {int(a): typical(code[action == a]) for a in action.unique()}


def environment_controls(clips: Batch, space: ActionSpace, settings: Settings) -> Tensor:
    """(B,K,A) float vectors; entry 0 is taken after the last context frame."""
    vectors = action_vectors(clips["action"], clips["is_last"], space)
    return vectors[:, settings.context - 1 : settings.context - 1 + settings.steps]


def mapped_controls(clips: Batch, space: ActionSpace, table: dict[int, Tensor], settings: Settings) -> Tensor:
    """(B,K) codes or (B,K,D) vectors by :func:`fit_code_of_action`."""
    action = action_classes(clips["action"], space)[:, settings.context - 1 : settings.context - 1 + settings.steps]
    return torch.stack([torch.stack([table.get(int(a), table[-1]) for a in row]) for row in action])


def oracle_controls(codes: Tensor, settings: Settings) -> Tensor:
    """(B,K,...) of (B,T-1,...) codes inferred from the true future."""
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
        codes: split -> (B,T-1) codes or (B,T-1,D) vectors read off whole clips; empty likewise.
        table: action -> code of a model whose codes are mapped; empty for others.
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
        self.table: dict[int, Tensor] = {}
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
            train_codes = self.codes["train"].flatten(0, 1)
            self.table = fit_code_of_action(action[:, :-1].flatten(), train_codes, seen.flatten())
            self.fair = {split: mapped_controls(clips[split], spec.action, self.table, settings) for split in clips}
            self.oracle = oracle_controls(self.codes["test"], settings) if judged else None
