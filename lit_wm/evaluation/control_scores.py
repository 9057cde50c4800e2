"""Does an action do in imagination what it does in the world?

* **Transfer accuracy** (models with codes): a code that was inferred where one clip made some movement is applied to the state
  of another clip; does the agent make that movement there? Each state is given one code of every effect it has room for, so
  that all effects count alike. Codes can match the actions perfectly and still mean something else elsewhere.
* **Counterfactual accuracy** (every model that can be steered): from one state, every action (or the code that stands for it)
  is tried; does the agent move as the world would have moved it? The truth is what the command usually does, at states where
  training clips show room for it (:class:`~lit_wm.evaluation.obedience.Obedience`). A recording holds one future of each state only;
  in a world that does not obey at once what the others would have been is not known, and the number is n/a.

What happened is read off two states, by pictures or by features, whichever is the better for the run
(:mod:`~lit_wm.evaluation.effect_readings`). Beside both scores stand how well effects are read where nothing was imagined (the ceiling) and
the score against shuffled labels (the floor). Where the ceiling is under ``READABLE`` there is no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, State, WorldModelContract, at, concatenate, map_state
from lit_wm.evaluation.code_scores import NO_CODES
from lit_wm.evaluation.effect_readings import Reading
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import Obedience
from lit_wm.evaluation.probes import MIN_SAMPLES
from lit_wm.evaluation.rollouts import chunks, device_of
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise
from lit_wm.evaluation.steering import Steering, action_of_class

READABLE = 0.8  # least accuracy on states that were seen: below it misses may be the reader's
ACTIONS = 8  # tried at a state, at most
MORE = 2  # frames after the context that are shown to the model for the ceiling
NO_ACTIONS = "the model takes no actions"
TRANSFER, COUNTERFACTUAL = "codes/transfer_accuracy", "control/counterfactual_accuracy"
CEILINGS = {name: f"control/ceiling_{name}" for name in ("real_frames", "frames", "features")}


@dataclass(frozen=True)
class Trial:
    """What is tried, at which states, and what ought to happen.

    Args:
        rows: (n,) clips whose state is taken.
        controls: (n,...) what is done, one step.
        effect: (n,) the effect it ought to have.
    """

    rows: Tensor
    controls: Tensor
    effect: Tensor


def control_numbers(
    model: WorldModelContract,
    test: Batch,
    steering: Steering,
    spec: ExperienceSpec,
    obedience: Obedience | str,
    readings: Mapping[str, Reading] | str,
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """Transfer and counterfactual accuracy with their ceilings and floors.

    Args:
        model: in evaluation mode.
        test: the clips.
        steering: the model's codes and what stands for each action.
        spec: of the data.
        obedience: what commands do in it, or why this is not known.
        readings: ``frames`` and ``features``, ways to read effects; or why there is none.
        settings: context, temperature, seed.
        draws: over the clips.
    """
    if isinstance(obedience, str) or isinstance(readings, str):
        reason = obedience if isinstance(obedience, str) else readings
        numbers = {tag: not_applicable(reason) for tag in CEILINGS.values()}
        return numbers | absent(TRANSFER, reason) | absent(COUNTERFACTUAL, reason)
    effect = obedience.effects(test, spec)
    now = settings.context - 1
    seen = observed(model, test, now + 1 + MORE, settings)
    looks = {name: look(seen, now, reading, settings) for name, reading in readings.items()}
    ceilings = {
        name: ceiling(reading, looks[name], effect[:, now : now + MORE], draws) for name, reading in readings.items()
    }
    best = max(ceilings, key=lambda name: ceilings[name].value or 0)
    trusted = (ceilings[best].value or 0) >= READABLE
    ceilings["real_frames"] = ceiling(readings["frames"], test["frames"], effect, draws)
    numbers = {CEILINGS[name]: number for name, number in ceilings.items()}
    places, random = obedience.places(test)[:, now], np.random.default_rng(settings.seed)
    trials: dict[str, Trial | str] = {TRANSFER: NO_CODES}
    if "test" in steering.codes:
        trials[TRANSFER] = transfer_trial(steering.codes["test"], effect, places, obedience, random)
    trials[COUNTERFACTUAL] = counterfactual_trial(model, steering, spec, places, obedience, random)
    for tag, trial in trials.items():
        if isinstance(trial, str):
            numbers |= absent(tag, trial)
        elif not trusted:
            numbers |= absent(tag, "effects cannot be read reliably even off states that were seen")
        else:
            read = imagined_effects(model, at(seen, now), looks[best][:, 0], trial, readings[best], settings)
            numbers |= accuracy(tag, read, trial, settings, draws)
    return numbers


def absent(tag: str, reason: str) -> dict[str, Number]:
    """No score and no floor, and why."""
    return {f"{tag}{floor}": not_applicable(reason) for floor in ("", "_shuffled")}


def transfer_trial(
    codes: Tensor, effect: Tensor, places: Tensor, obedience: Obedience, random: np.random.Generator
) -> Trial | str:
    """At every state one code of each effect that has room, taken from a random transition of another clip.

    Args:
        codes: (B,T-1,...) inferred from the clips.
        effect: (B,T-1) their effects, -1 where undefined or blocked.
        places: (B,A) of the agent where the codes are applied.
        obedience: says where there is room.
        random: chooses among the transitions.
    """
    rows, controls, effects = [], [], []
    for kind in effect[effect != UNDEFINED].unique().tolist():
        clip, step = (effect == kind).nonzero(as_tuple=True)
        for row in obedience.room_for(kind, places).nonzero()[:, 0].tolist():
            elsewhere = (clip != row).nonzero()[:, 0]
            if len(elsewhere):
                chosen = elsewhere[random.integers(len(elsewhere))]
                rows.append(row)
                controls.append(codes[clip[chosen], step[chosen]])
                effects.append(kind)
    return trial_of(rows, controls, effects)


def counterfactual_trial(
    model: WorldModelContract,
    steering: Steering,
    spec: ExperienceSpec,
    places: Tensor,
    obedience: Obedience,
    random: np.random.Generator,
) -> Trial | str:
    """At every state all actions (or ``ACTIONS`` of them at random) whose usual effect has room."""
    if model.action_space == "none":
        return NO_ACTIONS
    if isinstance(obedience.usual, str):
        return obedience.usual
    known = list(obedience.usual)
    room = torch.stack([obedience.room_for(obedience.usual[a], places) for a in known], 1)
    rows, controls, effects = [], [], []
    for row, roomy in enumerate(room.numpy()):
        tried = np.flatnonzero(roomy)
        for i in sorted(random.choice(tried, ACTIONS, replace=False)) if len(tried) > ACTIONS else tried:
            a = known[i]
            stands_for = steering.table.get(a, steering.table.get(-1))
            rows.append(row)
            controls.append(action_of_class(a, spec.action) if stands_for is None else stands_for)
            effects.append(obedience.usual[a])
    return trial_of(rows, controls, effects)


def trial_of(rows: list[int], controls: list[Tensor], effects: list[int]) -> Trial | str:
    """A trial, or that it would rest on too little."""
    if len(rows) < MIN_SAMPLES:
        return f"there is room for an effect in {len(rows)} cases only"
    return Trial(torch.tensor(rows), torch.stack(controls), torch.tensor(effects))


@torch.inference_mode()
def observed(model: WorldModelContract, clips: Batch, steps: int, settings: Settings) -> State:
    """States (B,steps,...) of the first frames of clips, all of them seen."""
    return concatenate([model.observe(b) for b in chunks(clips, settings.batch_size, steps, device_of(model))])


@torch.inference_mode()
def look(seen: State, now: int, reading: Reading, settings: Settings) -> Tensor:
    """What a reading sees (B,1+MORE,...) of the states from frame ``now`` on."""
    rows = torch.arange(len(next(iter(seen.values())))).split(settings.batch_size)
    return torch.cat([reading.look(map_state(seen, lambda x, some=some: x[some, now:])) for some in rows])


def ceiling(reading: Reading, looks: Tensor, effect: Tensor, draws: EpisodeDraws) -> Number:
    """How well effects (B,MORE) are read off states that were seen."""
    known = effect != UNDEFINED
    if int(known.sum()) < MIN_SAMPLES:
        return not_applicable(f"the effect is defined in {int(known.sum())} of these transitions only")
    hits = reading.read(looks[:, :-1][known], looks[:, 1:][known]) == effect[known]
    return share(hits, known.nonzero()[:, 0], draws)


@torch.inference_mode()
def imagined_effects(
    model: WorldModelContract, state: State, before: Tensor, trial: Trial, reading: Reading, settings: Settings
) -> Tensor:
    """(n,) effects of a trial, each read off one imagined step.

    Args:
        model: in evaluation mode.
        state: leading axis (B,).
        before: (B,...) what the reading sees of it.
        trial: what is tried.
        reading: how to read.
        settings: batch size, temperature, seed.
    """
    device, read = device_of(model), []
    generator = torch.Generator(device).manual_seed(settings.seed)
    size = settings.batch_size
    for rows, controls in zip(trial.rows.split(size), trial.controls.split(size), strict=True):
        some = map_state(state, lambda x, rows=rows: x[rows.to(x.device)])
        future = model.imagine(some, controls[:, None].to(device), 1, settings.temperature, generator)
        after = reading.look(map_state(future, lambda x: x[:, 0]))[:, 0]
        read.append(reading.read(before[rows], after))
    return torch.cat(read)


def accuracy(tag: str, read: Tensor, trial: Trial, settings: Settings, draws: EpisodeDraws) -> dict[str, Number]:
    """Share of effects (n,) that are as they ought to be, and against shuffled labels."""
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(settings.seed))
    return {
        tag: share(read == trial.effect, trial.rows, draws),
        f"{tag}_shuffled": share(read == trial.effect[order], trial.rows, draws),
    }


def share(hits: Tensor, rows: Tensor, draws: EpisodeDraws) -> Number:
    """The mean of hits (n,) with its interval over the episodes of their clips."""
    of_hits = EpisodeDraws(draws.weights, draws.row[rows.numpy()])
    return summarise(of_hits.means(hits.numpy()), len(hits), draws.episodes)
