"""What the commands of a world usually do and where they are blocked, counted on training clips.

A step is *blocked* when its command usually moves the agent and nothing moved: the command's effect is then a wall's, and
neither a code nor an imagined frame can be asked for it. This can only be told in a world that obeys at once: where the
agent often moves otherwise than commanded (inertia, sticky actions: Pong), standing still proves no wall, and nothing is
called blocked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch
from lit_wm.evaluation.effects import NO_AGENT, UNDEFINED, agent_columns, effect_class, still_class
from lit_wm.evaluation.steering import action_classes, transitions

DISOBEDIENT = 0.02  # steps that go otherwise than usual, above which a world does not obey at once
MOVES = 0.05  # a command that moves the agent in fewer steps is one to stand still

NO_STATE = "the data holds no true state"


@dataclass(frozen=True)
class Obedience:
    """The law of the agent, as far as training clips show it.

    Args:
        columns: A columns of ``state`` that tell where the agent is.
        usual: action -> effect class of the command where nothing is in the way; or why this cannot be told.
        displacement: effect class -> (A,) mean displacement.
        low_a: (A,) the least place at which the agent was seen.
        high_a: (A,) the greatest.
        stopped: effect class -> (n,A) places at which it was commanded and blocked.
    """

    columns: list[int]
    usual: dict[int, int] | str
    displacement: dict[int, Tensor]
    low_a: Tensor
    high_a: Tensor
    stopped: dict[int, Tensor]

    def blocked(self, effect: Tensor, action: Tensor | None) -> Tensor:
        """Where a command that usually moves the agent did not: effects and actions (...) -> bool (...)."""
        if isinstance(self.usual, str) or action is None:
            return torch.zeros_like(effect, dtype=torch.bool)
        still = still_class(len(self.columns))
        moving = torch.tensor([a for a, usual in self.usual.items() if usual != still], dtype=torch.long)
        return (effect == still) & torch.isin(action, moving)

    def effects(self, clips: Batch, spec: ExperienceSpec) -> Tensor:
        """(B,T-1) effect classes; -1 where undefined, across the end of an episode, and where the way was blocked."""
        effect = effect_class(self.places(clips).diff(dim=1))
        action = action_classes(clips.get("action"), spec.action)
        left_out = ~transitions(clips) | self.blocked(effect, None if action is None else action[:, :-1])
        return effect.masked_fill(left_out, UNDEFINED)

    def places(self, clips: Batch) -> Tensor:
        """(B,T,A) where the agent is."""
        return clips["state"][..., self.columns]

    def room_for(self, effect: int, places_na: Tensor) -> Tensor:
        """(n,) bool: from these places nothing that training clips show would block an effect.

        The whole mean displacement stays within the range in which the agent was seen, and no step with a command to this
        effect was blocked within that displacement's length (of the larger axis) from here: which keeps off walls within the range too.
        """
        if effect not in self.displacement:
            return torch.zeros(len(places_na), dtype=torch.bool)
        moved = self.displacement[effect]
        reached = places_na + moved
        room = ((self.low_a <= reached) & (reached <= self.high_a)).all(-1)
        if len(stops := self.stopped.get(effect, places_na[:0])) and bool((moved != 0).any()):
            nearest = (places_na[:, None] - stops).abs().amax(-1).amin(1)
            room &= nearest > moved.abs().max()
        return room


def learn_obedience(clips: Batch, spec: ExperienceSpec) -> Obedience | str:
    """Count what commands do.

    Args:
        clips: training clips.
        spec: of the data.

    Returns:
        The law, or why there is none.
    """
    if "state" not in clips:
        return NO_STATE
    if (found := agent_columns(spec.factors)) is None:
        return NO_AGENT
    columns, _ = found
    places = clips["state"][..., columns]
    moved = places.diff(dim=1)
    effect = effect_class(moved)
    seen = transitions(clips) & (effect != UNDEFINED)
    if not seen.any():
        return "the agent is to be seen in no training clip"
    action = action_classes(clips.get("action"), spec.action)
    usual = usual_effects(None if action is None else action[:, :-1][seen], effect[seen], still_class(len(columns)))
    displacement = {int(e): moved[seen & (effect == e)].mean(0) for e in effect[seen].unique()}
    inside = places[places.isfinite().all(-1)]
    law = Obedience(columns, usual, displacement, inside.amin(0), inside.amax(0), {})
    if isinstance(usual, str):
        return law
    stops = law.blocked(effect, action[:, :-1]) & seen
    for a, e in usual.items():
        here = places[:, :-1][stops & (action[:, :-1] == a)]
        law.stopped[e] = torch.cat([law.stopped.get(e, here[:0]), here])
    return law


def usual_effects(action: Tensor | None, effect: Tensor, still: int) -> dict[int, int] | str:
    """Each command's most frequent movement, or to stand still where it hardly ever moves the agent.

    Args:
        action: (n,) classes; None for continuous commands and for none.
        effect: (n,) classes of the same steps, all defined.
        still: the class of no movement.

    Returns:
        action -> effect class; or, in a world that does not obey at once, why there is none.
    """
    if action is None:
        return "the commands are continuous, or there are none"
    usual, otherwise = {}, 0
    for a in action.unique().tolist():
        of_a = effect[action == a]
        movements = of_a[of_a != still]
        usual[a] = int(movements.mode().values) if len(movements) > MOVES * len(of_a) else still
        otherwise += int((movements != usual[a]).sum())
    if otherwise > DISOBEDIENT * len(effect):
        return f"this world does not obey at once: {otherwise / len(effect):.0%} of the steps move otherwise than usual"
    return usual
