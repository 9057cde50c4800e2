"""Which of a model's codes stands for which of the environment's actions: fitted on labelled steps, judged on others.

The code of an action is the one that most often goes with it in training clips, or of a model with vectors their mean
(:func:`~lit_wm.evaluation.steering.fit_code_of_action`: what the scorecard's headline is steered by). That alone promises little, since
codes may merge actions or split them; so every entry says how often it was right on clips it was not fitted on. Labels are
commands: a step that a wall blocked counts as a miss, though the code may say truly that nothing moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.experience import ActionSpace
from lit_wm.contract import Batch, WorldModelContract
from lit_wm.evaluation.rollouts import infer_codes
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.steering import action_classes, fit_code_of_action, transitions

Steps = tuple[Tensor, Tensor]  # codes (n,) int64 or (n,D) float, and the actions (n,) int64 of the same steps


@dataclass(frozen=True)
class StandIn:
    """What stands for an action.

    Args:
        control: () int64 code, or (D,) vector.
        mostly: the action that most training steps with this code had; where it is another one, no code stands for this action.
        steps: held-out steps that have this code.
        right: share of these that had the action; None where there are none.
        found: share of the held-out steps with the action that have this code; None where nobody did it.
    """

    control: Tensor
    mostly: int
    steps: int
    right: float | None
    found: float | None


def fit_action_map(train: Steps, held_out: Steps) -> dict[int, StandIn]:
    """Action -> what stands for it, for every action that occurs in training.

    Args:
        train: labelled steps it is fitted on, at least one.
        held_out: labelled steps it is judged on.
    """
    table = fit_code_of_action(train[1], train[0], torch.ones_like(train[1], dtype=torch.bool))
    actions = [action for action in table if action >= 0]
    controls = torch.stack([table[action] for action in actions])
    has_train, has_held_out = (carries(codes, controls) for codes, _ in (train, held_out))
    found = {}
    for i, action in enumerate(actions):
        with_code, did = held_out[1][has_held_out[:, i]] == action, held_out[1] == action
        found[action] = StandIn(
            controls[i],
            int(train[1][has_train[:, i]].mode().values) if has_train[:, i].any() else action,
            len(with_code),
            share(with_code),
            share(has_held_out[did, i]),
        )
    return found


def carries(codes: Tensor, controls: Tensor) -> Tensor:
    """Which steps carry which of A controls: (n,) or (n,D) codes -> (n,A) bool. A vector carries the nearest one."""
    if codes.is_floating_point():
        return F.one_hot(torch.cdist(codes, controls).argmin(1), len(controls)).bool()
    return codes[:, None] == controls


def share(hits: Tensor) -> float | None:
    """The mean of (n,) bool; None of nothing."""
    return float(hits.double().mean()) if len(hits) else None


def labelled_steps(model: WorldModelContract, clips: Batch, space: ActionSpace, settings: Settings) -> Steps:
    """The steps of clips (B,T,...) with the codes that a model with codes reads off them. ``space`` has numbered actions."""
    kept = transitions(clips)
    return infer_codes(model, clips, settings)[kept], action_classes(clips["action"], space)[:, :-1][kept]
