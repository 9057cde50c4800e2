"""Codes of a clip against the true effect of its actions and against the commands (``codes.py`` has the measures)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch
from lit_wm.evaluation.codes import CONTINUOUS, label_numbers, perplexity
from lit_wm.evaluation.effects import UNDEFINED
from lit_wm.evaluation.obedience import Obedience
from lit_wm.evaluation.probes import MIN_SAMPLES
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import Number, episode_draws, not_applicable
from lit_wm.evaluation.steering import action_classes, transitions

LABELLINGS = ("effect", "command")
MEASURES = ("ami", "accuracy", "hungarian", "logistic")
NO_CODES = "the model has no codes"


def code_numbers(
    found: Mapping[str, Tensor],
    clips: Mapping[str, Batch],
    spec: ExperienceSpec,
    obedience: Obedience | str,
    settings: Settings,
) -> dict[str, Number]:
    """All scores of codes against labels.

    Args:
        found: split -> (B,T-1) codes or (B,T-1,D) vectors; empty for a model without codes.
        clips: split -> clips.
        spec: of the data.
        obedience: what commands do in it, or why this is not known.
        settings: the yardstick.
    """
    if "test" not in found:
        return {f"codes/{name}_ami": not_applicable(NO_CODES) for name in LABELLINGS}
    numbers = usage_numbers(found["test"][transitions(clips["test"])].numpy())
    for name in LABELLINGS:
        labels = {split: transition_labels(name, clips[split], spec, obedience) for split in ("train", "test")}
        reason = next((label for label in labels.values() if isinstance(label, str)), None)
        if reason is not None:
            numbers |= absent(name, reason)
            continue
        kept = {split: (label != UNDEFINED) & transitions(clips[split]) for split, label in labels.items()}
        if (fewest := min(int(keep.sum()) for keep in kept.values())) < MIN_SAMPLES:
            numbers |= absent(name, f"the {name} is defined in {fewest} transitions only")
            continue
        pairs = {s: (found[s][kept[s]].numpy(), labels[s][kept[s]].numpy()) for s in labels}
        episode = clips["test"]["episode"][:, None].expand_as(kept["test"])[kept["test"]]
        draws = episode_draws(episode.numpy(), settings.draws, settings.seed)
        numbers |= label_numbers(name, pairs["train"], pairs["test"], draws, settings.seed)
    return numbers


def absent(name: str, reason: str) -> dict[str, Number]:
    """No scores against a labelling, and why."""
    return {f"codes/{name}_{measure}": not_applicable(reason) for measure in MEASURES}


def usage_numbers(code: np.ndarray) -> dict[str, Number]:
    """How many codes are used, and how evenly."""
    if not np.issubdtype(code.dtype, np.integer):
        return {f"codes/{name}": not_applicable(CONTINUOUS) for name in ("used", "perplexity")}
    used = float(len(np.unique(code)))
    return {"codes/used": Number(used, len(code)), "codes/perplexity": Number(perplexity(code), len(code))}


def transition_labels(name: str, clips: Batch, spec: ExperienceSpec, obedience: Obedience | str) -> Tensor | str:
    """(B,T-1) classes of the executed effect or of the command, or why there are none."""
    if name == "command":
        if not spec.acted:
            return "the data holds no actions"
        action = action_classes(clips["action"], spec.action)
        return "the commands are continuous" if action is None else action[:, :-1]
    return obedience if isinstance(obedience, str) else obedience.effects(clips, spec)
