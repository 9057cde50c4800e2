"""Codes of a clip against the true effect of its actions and against the commands (``codes.py`` has the measures)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch
from lit_wm.evaluation.codes import label_numbers, perplexity
from lit_wm.evaluation.effects import UNDEFINED, true_effect
from lit_wm.evaluation.probes import MIN_SAMPLES
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import Number, episode_draws, not_applicable
from lit_wm.evaluation.steering import action_classes, transitions

LABELLINGS = ("effect", "command")


def code_numbers(
    found: Mapping[str, Tensor], clips: Mapping[str, Batch], spec: ExperienceSpec, settings: Settings
) -> dict[str, Number]:
    """All code scores.

    Args:
        found: split -> (B,T-1) codes; empty for a model without codes.
        clips: split -> clips.
        spec: of the data.
        settings: the yardstick.
    """
    if "test" not in found:
        return {f"codes/{name}_ami": not_applicable("the model has no codes") for name in LABELLINGS}
    every = found["test"][transitions(clips["test"])].numpy()
    numbers = {
        "codes/used": Number(float(len(np.unique(every))), len(every)),
        "codes/perplexity": Number(perplexity(every), len(every)),
    }
    for name in LABELLINGS:
        labels = {split: transition_labels(name, clips[split], spec) for split in ("train", "test")}
        reason = next((label for label in labels.values() if isinstance(label, str)), None)
        if reason is not None:
            numbers[f"codes/{name}_ami"] = not_applicable(reason)
            continue
        kept = {split: (label != UNDEFINED) & transitions(clips[split]) for split, label in labels.items()}
        if (fewest := min(int(keep.sum()) for keep in kept.values())) < MIN_SAMPLES:
            numbers[f"codes/{name}_ami"] = not_applicable(f"the {name} is defined in {fewest} transitions only")
            continue
        pairs = {s: (found[s][kept[s]].numpy(), labels[s][kept[s]].numpy()) for s in labels}
        episode = clips["test"]["episode"][:, None].expand_as(kept["test"])[kept["test"]]
        draws = episode_draws(episode.numpy(), settings.draws, settings.seed)
        numbers |= label_numbers(name, pairs["train"], pairs["test"], draws, settings.seed)
    return numbers


def transition_labels(name: str, clips: Batch, spec: ExperienceSpec) -> Tensor | str:
    """(B,T-1) classes of the true effect or of the command, or why there are none."""
    if name == "command":
        if not spec.acted:
            return "the data holds no actions"
        action = action_classes(clips["action"], spec.action)
        return "the commands are continuous" if action is None else action[:, :-1]
    if "state" not in clips:
        return "the data holds no true state"
    effect = true_effect(clips["state"], spec.factors)
    return "no factor of the data tells where an agent is" if effect is None else effect[0]
