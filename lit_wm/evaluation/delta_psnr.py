"""Genie's measure of controllability: how much closer to the truth are frames imagined from true actions than from random ones?

    Delta_t PSNR = PSNR(x_t, x^_t) - PSNR(x_t, x^'_t),  t = 4                             (Bruce et al. 2024, section 3)

x^_t is generated from the latent actions inferred from the true frames, x^'_t from actions drawn from a categorical; both by the
model itself, frame by frame. As measured here:

* prompt: the first frame of a clip alone, as the paper plays its worlds (it does not say how many frames this measure begins
  with), then t = 4 actions; x_t is the fourth frame after the prompt. The yardstick's longer context is not used here;
* the categorical is uniform over the codes that the model uses on training clips, a code per step. A code that is never inferred
  is not offered to a player either, and means nothing to the dynamics;
* temperature 1, the model's own, as the paper samples: it says how the world is *played*. Both rollouts begin from the same seed,
  so that their noise is paired;
* PSNR per frame as in ``frames.py``, averaged over clips; the interval is over episodes.

Vectors in the place of codes are drawn from all that were inferred from test clips (the empirical law). A model of the
environment's own actions gets the same comparison with true and random actions, under a tag of its own: uniform over discrete
actions, empirical for continuous ones.

**Never read it alone.** It grows with every bit that a code carries, whatever the bit says: with leakage from 12 to 29 dB as K grew
from 5 to 256, and 8 dB with codes that said nothing of the agent and all of a distractor. AMI, transfer and leak tell what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from datamodules.experience import ActionSpace, ExperienceSpec, action_vectors
from lit_wm.contract import Batch, WorldModelContract
from lit_wm.evaluation.code_scores import NO_CODES
from lit_wm.evaluation.control_scores import NO_ACTIONS
from lit_wm.evaluation.frame_scores import NO_DECODER
from lit_wm.evaluation.frames import psnr
from lit_wm.evaluation.rollouts import roll
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise
from lit_wm.evaluation.steering import Steering, transitions

T = 4  # the paper's t
KINDS = ("codes", "actions")
TERMS = ("", "_true", "_random")
OTHER = {"codes": "the model is steered by its own codes", "environment": NO_CODES, "none": NO_ACTIONS}


def delta_psnr_numbers(
    model: WorldModelContract,
    clips: Mapping[str, Batch],
    steering: Steering,
    spec: ExperienceSpec,
    decoder: Callable[[Tensor], Tensor] | None,
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """Delta PSNR of test clips with both its terms, by the model's own decoder and by the common one.

    Args:
        model: in evaluation mode.
        clips: ``train`` and ``test``.
        steering: holds the codes of both.
        spec: of the data.
        decoder: the common decoder, (n,D) features -> (n,C,H,W); None where its numbers are not wanted.
        settings: batch size and seed.
        draws: over the test clips.
    """
    test, kind = clips["test"], {"codes": "codes", "environment": "actions"}.get(model.action_space)
    numbers = {}
    decoders = ("",) if decoder is None else ("", "_common")
    for other in KINDS:
        for by in decoders:
            if other != kind:
                numbers |= absent(f"k{T}/{other}{by}", OTHER[model.action_space])
    if kind is None:
        return numbers
    if kind == "codes":
        true = steering.codes["test"][:, :T]
        random = random_codes(steering.codes, clips, settings.seed)
    else:
        true = action_vectors(test["action"], test["is_last"], spec.action)[:, :T]
        random = random_actions(test, spec.action, settings.seed)
    one_frame = replace(settings, context=1, horizons=(T,), temperature=1.0)
    truth = test["frames"][:, T]
    by_decoder: dict[str, list[Tensor | None]] = {by: [] for by in decoders}
    for controls in (true, random):
        rolled = roll(model, test, controls, one_frame, decode=True)
        own = rolled.frames_bhchw
        by_decoder[""].append(None if own is None else psnr(own[:, 0], truth))
        if decoder is not None:
            by_decoder["_common"].append(psnr(decoder(rolled.features_bhd[:, 0]), truth))
    for by, (with_true, with_random) in by_decoder.items():
        tag = f"k{T}/{kind}{by}"
        if with_true is None or with_random is None:
            numbers |= absent(tag, NO_DECODER)
            continue
        for term, values in zip(TERMS, (with_true - with_random, with_true, with_random), strict=True):
            numbers[f"delta_psnr{term}/{tag}"] = summarise(draws.means(values.numpy()), len(values), draws.episodes)
    return numbers


def absent(tag: str, reason: str) -> dict[str, Number]:
    """No difference and no terms, and why."""
    return {f"delta_psnr{term}/{tag}": not_applicable(reason) for term in TERMS}


def random_codes(codes: Mapping[str, Tensor], clips: Mapping[str, Batch], seed: int) -> Tensor:
    """(B,T) codes, uniform over those used on training clips; or (B,T,D) vectors drawn from all those of test clips."""
    continuous = codes["test"].is_floating_point()
    split = "test" if continuous else "train"
    offered = codes[split][transitions(clips[split])]
    if not continuous:
        first = np.unique(offered.numpy(), return_index=True)[1]
        offered = offered[np.sort(first)]  # as they first come: other names for the codes draw the same ones
    generator = torch.Generator().manual_seed(seed)
    return offered[torch.randint(len(offered), (len(codes["test"]), T), generator=generator)]


def random_actions(clips: Batch, space: ActionSpace, seed: int) -> Tensor:
    """(B,T,A) vectors: discrete actions uniform, continuous ones drawn from all actions of the clips."""
    generator = torch.Generator().manual_seed(seed)
    count = len(clips["action"])
    if space.kind == "continuous":
        offered = clips["action"][:, :-1][transitions(clips)]
        action = offered[torch.randint(len(offered), (count, T), generator=generator)]
    else:
        parts = torch.stack([torch.randint(n, (count, T), generator=generator) for n in space.sizes], -1)
        action = parts[..., 0] if space.kind == "discrete" else parts
    return action_vectors(action, torch.zeros(count, T, dtype=torch.bool), space)
