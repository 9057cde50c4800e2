"""What each code does, for the eye: what the agent did where a code was inferred, and what is imagined when it is held.

Vectors in the place of codes are shown by the actions they stand for: each transition counts for the action whose mean vector is
nearest to its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, WorldModelContract, at, map_state
from lit_wm.evaluation.control_scores import observed
from lit_wm.evaluation.effect_readings import Decoder, draw
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import Obedience
from lit_wm.evaluation.rollouts import device_of
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.steering import Steering, transitions

MOST = 12  # codes shown
HELD = 4  # steps for which each is held


@dataclass(frozen=True)
class CodePicture:
    """What is drawn of K codes.

    Args:
        titles: of the codes.
        shares: of the test transitions in which each was inferred.
        moved: for each code (n,A) displacements of the agent, blocked steps left out; None where the truth is not known.
        starts: (S,C,H,W) uint8, drawn of what was seen.
        imagined: (S,K,C,H,W) uint8, after the code was held for ``HELD`` steps.
        left_out: codes in use that are not shown.
    """

    titles: list[str]
    shares: list[float]
    moved: list[Tensor] | None
    starts: Tensor
    imagined: Tensor
    left_out: int


def picture_codes(
    model: WorldModelContract,
    test: Batch,
    steering: Steering,
    spec: ExperienceSpec,
    obedience: Obedience | str,
    decoder: Decoder,
    settings: Settings,
) -> CodePicture | None:
    """The picture of a model with codes; None for others, and for vectors that stand for no action."""
    if "test" not in steering.codes:
        return None
    found = steering.codes["test"]
    names, representatives, of_transition = chosen_codes(found, steering.table, spec)
    if not names:
        return None
    counted = of_transition[transitions(test)]
    counts = torch.bincount(counted, minlength=len(names))
    shown = counts.argsort(descending=True, stable=True)[:MOST].sort().values.tolist()
    moved = None
    if isinstance(obedience, Obedience):
        effect, displacement = obedience.effects(test, spec), obedience.places(test).diff(dim=1)
        moved = [displacement[(of_transition == i) & (effect != UNDEFINED)] for i in shown]
    starts, imagined = hold(model, test, representatives[shown], obedience, decoder, settings)
    used = int((counts > 0).sum())
    return CodePicture(
        [names[i] for i in shown],
        [counts[i].item() / len(counted) for i in shown],
        moved,
        starts,
        imagined,
        max(used - len(shown), 0),
    )


def chosen_codes(found: Tensor, table: dict[int, Tensor], spec: ExperienceSpec) -> tuple[list[str], Tensor, Tensor]:
    """Names of the columns, what each gives to the model (K,...), and the column of each transition (B,T-1)."""
    if not found.is_floating_point():
        codes, column = found.unique(return_inverse=True)
        return [f"code {code}" for code in codes.tolist()], codes, column
    actions = [action for action in table if action >= 0]
    if not actions:
        return [], found, found
    means = torch.stack([table[action] for action in actions])
    column = torch.cdist(found.flatten(0, 1), means).argmin(1).view(found.shape[:2])
    known = spec.action.names
    return [known[a] if a < len(known) else f"action {a}" for a in actions], means, column


def hold(
    model: WorldModelContract,
    test: Batch,
    codes: Tensor,
    obedience: Obedience | str,
    decoder: Decoder,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Pictures (S,C,H,W) of a few states and (S,K,C,H,W) of what follows when each of the codes (K,...) is held."""
    rows = roomy_clips(test, obedience, settings)
    some = {key: value[rows] for key, value in test.items()}
    start = at(observed(model, some, settings.context, settings), settings.context - 1)
    device, count = device_of(model), len(rows)
    state = map_state(start, lambda x: x.repeat_interleave(len(codes), 0))
    controls = codes.repeat(count, *[1] * (codes.ndim - 1))[:, None]
    controls = controls.expand(-1, HELD, *codes.shape[1:]).to(device)
    generator = torch.Generator(device).manual_seed(settings.seed)
    with torch.inference_mode():
        future = model.imagine(state, controls, 1, settings.temperature, generator)
        last = draw(model, map_state(future, lambda x: x[:, 0, -1:]), decoder)[:, 0]
        first = draw(model, map_state(start, lambda x: x[:, None]), decoder)[:, 0]
    return as_bytes(first), as_bytes(last).unflatten(0, (count, len(codes)))


def roomy_clips(test: Batch, obedience: Obedience | str, settings: Settings) -> Tensor:
    """Rows of clips to begin from: where the agent is furthest from any edge, from different episodes where there are enough."""
    first = torch.tensor([int((test["episode"] == e).nonzero()[0]) for e in test["episode"].unique()])
    if isinstance(obedience, str):
        return first[: settings.shown]
    places = obedience.places(test)[first, settings.context - 1]
    edge = torch.minimum(places - obedience.low_a, obedience.high_a - places).amin(-1).nan_to_num(-torch.inf)
    return first[edge.argsort(descending=True, stable=True)[: settings.shown]].sort().values


def as_bytes(frames: Tensor) -> Tensor:
    """[0, 1] -> uint8."""
    return (frames.clamp(0, 1) * 255).round().byte()
