"""PSNR and SSIM at every horizon, by the model's own decoder and by the common one, beside copying the last frame.

The k=0 row is each decoder's reconstruction ceiling: what it draws of a frame that the model has seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from lit_wm.contract import Batch
from lit_wm.evaluation.frames import SSIM_WINDOW, psnr, ssim
from lit_wm.evaluation.rollouts import Rollout
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import EpisodeDraws, Number, not_applicable, summarise

NO_DECODER = "the model has no decoder of its own"


def frame_numbers(
    fair: Rollout,
    oracle: Rollout | None,
    decoder: Callable[[Tensor], Tensor],
    test: Batch,
    settings: Settings,
    draws: EpisodeDraws,
) -> dict[str, Number]:
    """All frame scores of test clips.

    Args:
        fair: headline rollouts with frames, where the model can draw.
        oracle: rollouts steered by codes of the true future, or None.
        decoder: the common decoder, (n,D) features -> (n,C,H,W).
        test: the clips.
        settings: the yardstick.
        draws: over the test clips.
    """
    numbers: dict[str, Number] = {}
    now = settings.context - 1
    last = test["frames"][:, now]
    for h, k in enumerate(settings.horizons):
        truth = test["frames"][:, now + k]
        drawn: dict[str, Tensor | str] = {"copy": last if k else "at k=0 the last frame is the truth"}
        for suffix, rollout in (("", fair), ("_oracle_codes", oracle)):
            if rollout is not None:
                own = rollout.frames_bhchw
                drawn[f"native{suffix}"] = NO_DECODER if own is None else own[:, h]
                drawn[f"common{suffix}"] = decoder(rollout.features_bhd[:, h])
        for measure, function in (("psnr", psnr), ("ssim", ssim)):
            values = {name: frame_values(function, f, truth) for name, f in drawn.items()}
            for name, value in values.items():
                numbers[f"{measure}_{name}/k{k}"] = frame_number(value, draws)
                if name != "copy":
                    lacking = next((v for v in (value, values["copy"]) if isinstance(v, str)), None)
                    gain = lacking if lacking is not None else value - values["copy"]
                    numbers[f"{measure}_{name}_minus_copy/k{k}"] = frame_number(gain, draws)
    return numbers


def frame_values(function: Callable[[Tensor, Tensor], Tensor], drawn: Tensor | str, truth: Tensor) -> np.ndarray | str:
    """(n,) scores of drawn frames, or why there are none."""
    if isinstance(drawn, str):
        return drawn
    if function is ssim and min(truth.shape[-2:]) < SSIM_WINDOW:
        return f"pictures are smaller than the window of {SSIM_WINDOW} pixels"
    return function(drawn, truth).numpy()


def frame_number(values: np.ndarray | str, draws: EpisodeDraws) -> Number:
    """Mean over frames with its interval over episodes."""
    if isinstance(values, str):
        return not_applicable(values)
    return summarise(draws.means(values), len(values), draws.episodes)
