"""Does an action do in imagination what it does in the world?

* **Transfer accuracy** (models with codes): a code that was inferred where one clip made some movement is applied to the state
  of another clip; does the agent make that movement there? Each state is given one code of every effect it has room for, so
  that all effects count alike. Codes can match the actions perfectly and still mean something else elsewhere.
* **Counterfactual accuracy** (every model that can be steered): from one state, every action (or the code that stands for it)
  is tried; does the agent move as the world would have moved it? The truth is what the command usually does, at states where
  training clips show room for it (:class:`~lit_wm.evaluation.obedience.Obedience`). A recording holds one future of each state only;
  in a world that does not obey at once what the others would have been is not known, and the number is n/a.

What happened is read off two drawn frames by :class:`~lit_wm.evaluation.effect_reader.EffectReader`, drawn by the model's own
decoder or, without one, by the common decoder. Beside both stand the reader's accuracy on real frames and on frames drawn of
what was *seen* (the ceiling), and the score against shuffled labels (the floor). Where the ceiling is under ``READABLE`` there is no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, State, WorldModelContract, at, concatenate, map_state
from lit_wm.evaluation.code_scores import NO_CODES
from lit_wm.evaluation.effect_reader import EffectReader
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import Obedience
from lit_wm.evaluation.probes import MIN_SAMPLES
from lit_wm.evaluation.rollouts import chunks, device_of
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise
from lit_wm.evaluation.steering import Steering, action_of_class

READABLE = 0.8  # of the frames drawn of what was seen: below it misses may be the painter's
ACTIONS = 8  # tried at a state, at most
NO_ACTIONS = "the model takes no actions"
TRANSFER, COUNTERFACTUAL = "codes/transfer_accuracy", "control/counterfactual_accuracy"
READERS = ("control/reader_real", "control/reader_drawn")

Decoder = Callable[[Tensor], Tensor]  # (n,D) features -> (n,C,H,W)


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
    clips: Mapping[str, Batch],
    steering: Steering,
    spec: ExperienceSpec,
    obedience: Obedience | str,
    reader: EffectReader | str,
    decoder: Decoder,
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """Transfer and counterfactual accuracy with their ceilings and floors.

    Args:
        model: in evaluation mode.
        clips: ``train``, ``val`` and ``test``; the numbers are of ``test``.
        steering: the model's codes and what stands for each action.
        spec: of the data.
        obedience: what commands do in it, or why this is not known.
        reader: reads effects off frames; or why there is none.
        decoder: the common decoder, for a model without its own.
        settings: context, temperature, seed.
        draws: over the test clips.
    """
    if isinstance(reader, str) or isinstance(obedience, str):
        reason = reader if isinstance(reader, str) else obedience
        tags = (*(f"{tag}{floor}" for tag in (TRANSFER, COUNTERFACTUAL) for floor in ("", "_shuffled")), *READERS)
        return {tag: not_applicable(reason) for tag in tags}
    test = clips["test"]
    effect = obedience.effects(test, spec)
    stage = Stage(test, model, decoder, settings)
    numbers = ceilings(stage, test, effect, reader, settings, draws)
    drawn = numbers["control/reader_drawn"].value
    unreadable = None
    if drawn is None or drawn < READABLE:
        unreadable = "of frames that were drawn of what the run had seen, effects are read right in too few"
    places = obedience.places(test)[:, settings.context - 1]
    random = np.random.default_rng(settings.seed)
    trials: dict[str, Trial | str] = {
        TRANSFER: NO_CODES
        if "test" not in steering.codes
        else transfer_trial(steering.codes["test"], effect, places, obedience, random),
        COUNTERFACTUAL: counterfactual_trial(model, steering, spec, places, obedience, random),
    }
    for tag, trial in trials.items():
        reason = trial if isinstance(trial, str) else unreadable
        if reason is not None:
            numbers |= {tag: not_applicable(reason), f"{tag}_shuffled": not_applicable(reason)}
        else:
            numbers |= score(tag, trial, stage, model, reader, decoder, settings, draws)
    return numbers


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


class Stage:
    """The states of clips at the last context frame, and what is drawn of them.

    Args:
        clips: to be shown to the model.
        model: in evaluation mode.
        decoder: the common decoder.
        settings: context and batch size.

    Attributes:
        state: leading axis (B,).
        drawn_btchw: (B,3,C,H,W) pictures of that frame and of the two after it, all of which were *seen*.
    """

    @torch.inference_mode()
    def __init__(self, clips: Batch, model: WorldModelContract, decoder: Decoder, settings: Settings) -> None:
        now, states, drawn = settings.context - 1, [], []
        for batch in chunks(clips, settings.batch_size, now + 3, device_of(model)):
            seen = model.observe(batch)
            states.append(at(seen, now))
            drawn.append(draw(model, map_state(seen, lambda x: x[:, now:]), decoder))
        self.state, self.drawn_btchw = concatenate(states), torch.cat(drawn)


def ceilings(
    stage: Stage, test: Batch, effect: Tensor, reader: EffectReader, settings: Settings, draws: EpisodeDraws
) -> dict[str, Number]:
    """How well effects (B,T-1) are read off real frames, and off frames drawn of what was seen."""
    now, shown = settings.context - 1, stage.drawn_btchw.shape[1] - 1

    def reading(frames_btchw: Tensor, effect: Tensor) -> Number:
        known = torch.isin(effect, reader.classes)
        if int(known.sum()) < MIN_SAMPLES:
            return not_applicable(f"the effect is defined in {int(known.sum())} of these transitions only")
        hits = reader(frames_btchw[:, :-1][known], frames_btchw[:, 1:][known]) == effect[known]
        return share(hits, known.nonzero()[:, 0], draws)

    return {
        "control/reader_real": reading(test["frames"], effect),
        "control/reader_drawn": reading(stage.drawn_btchw, effect[:, now : now + shown]),
    }


@torch.inference_mode()
def score(
    tag: str,
    trial: Trial,
    stage: Stage,
    model: WorldModelContract,
    reader: EffectReader,
    decoder: Decoder,
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """Accuracy of a trial, and against shuffled labels."""
    device, read = device_of(model), []
    generator = torch.Generator(device).manual_seed(settings.seed)
    for rows, controls in zip(
        trial.rows.split(settings.batch_size), trial.controls.split(settings.batch_size), strict=True
    ):
        state = map_state(stage.state, lambda x, rows=rows: x[rows.to(x.device)])
        future = model.imagine(state, controls[:, None].to(device), 1, settings.temperature, generator)
        after = draw(model, map_state(future, lambda x: x[:, 0]), decoder)[:, 0]
        read.append(reader(stage.drawn_btchw[rows, 0], after))
    effect = torch.cat(read)
    order = torch.randperm(len(effect), generator=torch.Generator().manual_seed(settings.seed))
    return {
        tag: share(effect == trial.effect, trial.rows, draws),
        f"{tag}_shuffled": share(effect == trial.effect[order], trial.rows, draws),
    }


def share(hits: Tensor, rows: Tensor, draws: EpisodeDraws) -> Number:
    """The mean of hits (n,) with its interval over the episodes of their clips."""
    of_hits = EpisodeDraws(draws.weights, draws.row[rows.numpy()])
    return summarise(of_hits.means(hits.numpy()), len(hits), draws.episodes)


@torch.inference_mode()
def draw(model: WorldModelContract, state: State, decoder: Decoder) -> Tensor:
    """Pictures of states (B,T,...) by the model's own decoder, or by the common one: (B,T,C,H,W) in [0, 1] on the CPU."""
    frames = model.decode(state)
    if frames is None:
        features = model.features(state).float().cpu()
        frames = decoder(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return frames.float().cpu()
