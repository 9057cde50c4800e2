"""What do the codes tell of things that the action cannot have caused?

Linear readers of the code (one-hot) or of the vector, fitted on training clips (ridge, penalty by leave-one-out), scored as R2 on
test clips of other episodes, beside the same for shuffled codes, fitted and scored like the others:

* ``codes/leak_r2``: of the **innovation** of exogenous things: what of their movement the past did not say, all of them together
  (so that the most surprising one weighs most). A code that tells it has been used to smuggle the next frame past the dynamics:
  it cannot be chosen by a player or predicted by a policy;
* ``codes/leak_r2/FACTOR``: one by one;
* ``codes/movement_r2/FACTOR``: of the whole movement, surprising or not, of the agent too: what the codes are about.

Exogenous are factors of the groups ``distractor`` and ``event``, the ball and the opponent. The innovation of a place is its
movement less a linear prediction from place and last movement; of an event, which way it was decided in the step that decides it.
A thing that bounces at an edge is predictable, but not by a line: its turns count as innovation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LinearRegression, RidgeCV
from torch import Tensor

from datamodules.experience import ExperienceSpec, Factor
from lit_wm.contract import Batch
from lit_wm.evaluation.code_scores import NO_CODES
from lit_wm.evaluation.codes import code_vectors
from lit_wm.evaluation.effects import agent_columns
from lit_wm.evaluation.obedience import NO_STATE
from lit_wm.evaluation.probes import MIN_SAMPLES, r2
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, episode_draws, not_applicable, summarise
from lit_wm.evaluation.steering import transitions

GROUPS, NAMES = ("distractor", "event"), ("ball_x", "ball_y", "enemy_y")
PENALTIES = np.logspace(-3, 4, 15)
PREDICTABLE = 1e-6  # share of the movement's variance below which an innovation is rounding


@dataclass(frozen=True)
class Target:
    """A number per transition from frame t >= 1 on, NaN where undefined.

    Args:
        train: (B,T-2).
        test: (B',T-2).
    """

    train: Tensor
    test: Tensor


def leak_numbers(
    codes: Mapping[str, Tensor], clips: Mapping[str, Batch], spec: ExperienceSpec, settings: Settings
) -> dict[str, Number]:
    """All of the above.

    Args:
        codes: split -> (B,T-1) codes or (B,T-1,D) vectors, of ``train`` and ``test``; empty for a model without codes.
        clips: split -> clips.
        spec: of the data.
        settings: bootstrap draws and seed.
    """
    exogenous = [f for f in spec.factors if is_exogenous(f)]
    reason = None
    if "test" not in codes:
        reason = NO_CODES
    elif "state" not in clips["train"]:
        reason = NO_STATE
    elif not exogenous:
        reason = "the data holds nothing that moves by itself"
    if reason is not None:
        return {"codes/leak_r2": not_applicable(reason)}
    reader = CodeReader(codes, clips, settings)
    column = {factor.name: i for i, factor in enumerate(spec.factors)}
    numbers, together = {}, []
    for factor in exogenous:
        states = {split: clips[split]["state"][..., column[factor.name]] for split in ("train", "test")}
        if factor.kind == "discrete":
            numbers |= reader.numbers(f"codes/leak_r2/{factor.name}", [decisions(states)])
            continue
        numbers |= reader.numbers(f"codes/movement_r2/{factor.name}", [movement(states)])
        new = innovation(states)
        numbers |= reader.numbers(f"codes/leak_r2/{factor.name}", [new] if isinstance(new, Target) else new)
        together += [new] if isinstance(new, Target) else []
    for i in (agent_columns(spec.factors) or ([], ""))[0]:
        states = {split: clips[split]["state"][..., i] for split in ("train", "test")}
        numbers |= reader.numbers(f"codes/movement_r2/{spec.factors[i].name}", [movement(states)])
    return numbers | reader.numbers("codes/leak_r2", together or "all that moves by itself can be told from the past")


def is_exogenous(factor: Factor) -> bool:
    """Whether no action can have caused what the factor does next. Places and events only: velocities say the same again."""
    return factor.group in GROUPS or factor.name in NAMES


def movement(states: Mapping[str, Tensor]) -> Target:
    """Places (B,T) -> displacement from frame t to t+1, for t >= 1."""
    return Target(*(states[split].diff(dim=1)[:, 1:] for split in ("train", "test")))


def innovation(states: Mapping[str, Tensor]) -> Target | str:
    """Places (B,T) -> displacement less its linear prediction from place and last displacement, or that there is nothing new."""
    past = {s: torch.stack([states[s][:, 1:-1], states[s].diff(dim=1)[:, :-1]], -1).double() for s in ("train", "test")}
    moved = movement(states)
    next_move = {"train": moved.train.double(), "test": moved.test.double()}
    known = {s: past[s].isfinite().all(-1) & next_move[s].isfinite() for s in past}
    if int(known["train"].sum()) < MIN_SAMPLES:
        return f"its movement is defined in {int(known['train'].sum())} training transitions only"
    line = LinearRegression().fit(past["train"][known["train"]].numpy(), next_move["train"][known["train"]].numpy())
    left = {}
    for s in past:
        left[s] = torch.full_like(next_move[s], torch.nan)
        predicted = line.predict(past[s][known[s]].numpy()) if known[s].any() else np.zeros(0)
        left[s][known[s]] = next_move[s][known[s]] - torch.from_numpy(predicted)
    variance, whole = left["train"][known["train"]].var(), next_move["train"][known["train"]].var()
    if variance <= PREDICTABLE * whole:
        return "its movement can be told from the past"
    return Target(left["train"], left["test"])


def decisions(states: Mapping[str, Tensor]) -> Target:
    """Values (B,T) of an event, NaN while undecided -> the value where a step decided it, NaN elsewhere."""
    decided = {
        s: torch.where(states[s][:, 1:-1].isfinite(), torch.nan, states[s][:, 2:]).double() for s in ("train", "test")
    }
    return Target(decided["train"], decided["test"])


class CodeReader:
    """Ridge regressions from the codes of transitions from frame t >= 1 on.

    Args:
        codes: split -> codes or vectors.
        clips: split -> clips.
        settings: bootstrap draws and seed.
    """

    def __init__(self, codes: Mapping[str, Tensor], clips: Mapping[str, Batch], settings: Settings) -> None:
        self.inside = {s: transitions(clips[s])[:, :-1] & transitions(clips[s])[:, 1:] for s in ("train", "test")}
        train, test = (codes[s][:, 1:][self.inside[s]].numpy() for s in ("train", "test"))
        random = np.random.default_rng(settings.seed)
        self.x = {
            "": code_vectors(train, test),
            "_shuffled": code_vectors(random.permutation(train), random.permutation(test)),
        }
        episode = clips["test"]["episode"][:, None].expand_as(self.inside["test"])[self.inside["test"]]
        self.draws = episode_draws(episode.numpy(), settings.draws, settings.seed)

    def numbers(self, tag: str, targets: list[Target] | str) -> dict[str, Number]:
        """R2 of all targets together, for codes and for shuffled codes.

        Args:
            tag: of the number; that of shuffled codes has ``_shuffled`` after its measure.
            targets: one or more, or why there is none.
        """
        if isinstance(targets, str):
            return {tag: not_applicable(targets)}
        y_train = [target.train[self.inside["train"]].double().numpy() for target in targets]
        y_test = np.stack([target.test[self.inside["test"]].double().numpy() for target in targets])
        fewest = min(*(int(np.isfinite(y).sum()) for y in y_train), *np.isfinite(y_test).sum(1).tolist())
        if fewest < MIN_SAMPLES:
            return {tag: not_applicable(f"it is defined in {fewest} transitions only")}
        measure, *factor = tag.removeprefix("codes/").split("/")
        numbers = {}
        for suffix, (x_train, x_test) in self.x.items():
            predicted = np.stack([ridge(x_train, y).predict(x_test) for y in y_train])
            number = pooled_r2(y_test, predicted, self.draws)
            numbers["/".join(["codes", f"{measure}{suffix}", *factor])] = number
        return numbers


def ridge(x_nd: np.ndarray, y_n: np.ndarray) -> RidgeCV:
    """A ridge regression fitted where the target is defined."""
    known = np.isfinite(y_n)
    return RidgeCV(PENALTIES).fit(x_nd[known], y_n[known])


def pooled_r2(y_fn: np.ndarray, predicted_fn: np.ndarray, draws: EpisodeDraws) -> Number:
    """R2 of F targets of n transitions together: errors and variations are summed before they are divided.

    Args:
        y_fn: (F,n), NaN where undefined.
        predicted_fn: (F,n).
        draws: over the n transitions.
    """
    known = np.isfinite(y_fn)
    rows = draws.row[np.nonzero(known)[1]]
    centred = y_fn - np.nanmean(y_fn, 1, keepdims=True)  # each about its own mean; R2 is invariant to one shift of both
    residual = y_fn - predicted_fn
    flat = EpisodeDraws(draws.weights, rows)
    y, error = centred[known], residual[known]
    score = r2(y, y - error, flat, np.ones(len(y), dtype=bool))
    return summarise(score, len(y), draws.episodes)
