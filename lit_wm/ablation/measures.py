"""Parts of the scorecard that an ablation may judge a run by: what it needs, and no more, because arms times seeds are many."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, WorldModelContract
from lit_wm.evaluation import rollouts
from lit_wm.evaluation.code_scores import code_numbers
from lit_wm.evaluation.delta_psnr import delta_psnr_numbers
from lit_wm.evaluation.frame_scores import NO_DECODER
from lit_wm.evaluation.frames import psnr, ssim
from lit_wm.evaluation.leak import leak_numbers
from lit_wm.evaluation.obedience import learn_obedience
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import Number, episode_draws, not_applicable, summarise
from lit_wm.evaluation.steering import Steering

Clips = Mapping[str, Batch]  # train, val, test
Measure = Callable[[WorldModelContract, Clips, ExperienceSpec, Settings], dict[str, Number]]


def measure_codes(
    model: WorldModelContract, clips: Clips, spec: ExperienceSpec, settings: Settings
) -> dict[str, Number]:
    """Codes against executed moves and commands, their use, and what they leak."""
    codes = Steering(model, clips, spec, settings).codes
    numbers = code_numbers(codes, clips, spec, learn_obedience(clips["train"], spec), settings)
    return numbers | leak_numbers(codes, clips, spec, settings)


def measure_delta_psnr(
    model: WorldModelContract, clips: Clips, spec: ExperienceSpec, settings: Settings
) -> dict[str, Number]:
    """Genie's delta-PSNR at t=4, by the model's own decoder."""
    draws = episode_draws(clips["test"]["episode"].numpy(), settings.draws, settings.seed)
    steering = Steering(model, clips, spec, settings)
    return delta_psnr_numbers(model, clips, steering, spec, None, settings, draws)


def measure_pictures(
    model: WorldModelContract, clips: Clips, spec: ExperienceSpec, settings: Settings
) -> dict[str, Number]:
    """PSNR and SSIM of each test clip's last context frame as the model's own decoder redraws it (k=0)."""
    test, now = clips["test"], settings.context - 1
    draws = episode_draws(test["episode"].numpy(), settings.draws, settings.seed)
    drawn = rollouts.redraw(model, test, settings)
    if drawn is None:
        return {f"{name}_native/k0": not_applicable(NO_DECODER) for name in ("psnr", "ssim")}
    truth = test["frames"][:, now]
    return {
        f"{name}_native/k0": summarise(draws.means(function(drawn, truth).numpy()), len(truth), draws.episodes)
        for name, function in (("psnr", psnr), ("ssim", ssim))
    }


MEASURES: dict[str, Measure] = {
    "codes": measure_codes,
    "delta_psnr": measure_delta_psnr,
    "pictures": measure_pictures,
}
