"""One run, judged: asks a model through the contract and hands what it says to the measures.

Everything is keyed by a tag, ``measure/horizon/group/factor``, the same for every route, so that later measures are added
by adding tags. The headline rollouts are steered fairly (environment actions, or codes mapped from them); rollouts steered
by codes that saw the true future carry ``_oracle_codes`` in their measure's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from datamodules.experience import ExperienceSpec
from lit_wm.contract import Batch, WorldModelContract, at
from lit_wm.errors import UserError
from lit_wm.evaluation import cost, rollouts
from lit_wm.evaluation.code_picture import CodePicture, picture_codes
from lit_wm.evaluation.code_scores import code_numbers
from lit_wm.evaluation.collapse import collapse_panel
from lit_wm.evaluation.control_scores import control_numbers
from lit_wm.evaluation.delta_psnr import delta_psnr_numbers
from lit_wm.evaluation.effect_reader import EffectReader, fit_reader
from lit_wm.evaluation.effect_readings import readings_of
from lit_wm.evaluation.frame_scores import frame_numbers
from lit_wm.evaluation.leak import leak_numbers
from lit_wm.evaluation.obedience import learn_obedience
from lit_wm.evaluation.probe_decoder import FittedDecoder
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.state_skill import state_numbers
from lit_wm.evaluation.statistics import Number, episode_draws
from lit_wm.evaluation.steering import Steering

Numbers = dict[str, Number]
Clips = Mapping[str, Batch]  # train, val, test
STAGES = 9  # how often ``judge`` reports progress


@dataclass
class RunScores:
    """What one run scored.

    Args:
        name: of the run.
        labels: what its training consumed.
        steering: how its headline rollouts were steered.
        numbers: tag -> number.
        pictures: row title -> (clips,C+K,C,H,W) uint8.
        code_picture: what each code does, of a run with codes.
        facts: what the caller knows of the run (seed, updates, frames seen ...); plain JSON types.
    """

    name: str
    labels: tuple[str, ...]
    steering: str
    numbers: Numbers
    pictures: dict[str, Tensor] = field(default_factory=dict)
    code_picture: CodePicture | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def judge(
    model: WorldModelContract,
    random_model: WorldModelContract,
    clips: Clips,
    spec: ExperienceSpec,
    settings: Settings,
    name: str = "run",
    train_batch: Batch | None = None,
    at_step: int = 0,
    progress: Callable[[str], None] = lambda what: None,
    reader: EffectReader | str | None = None,
) -> RunScores:
    """All numbers of one model.

    Args:
        model: in evaluation mode.
        random_model: the same architecture with random weights, the floor.
        clips: ``train``, ``val`` and ``test``, each a batch of the data contract with ``episode`` (B,), cut from different
            episodes; (B,T,...) with T at least ``settings.length``. Without ``state`` the state probes are n/a.
        spec: what the data holds.
        settings: the yardstick.
        name: of the run.
        train_batch: of the run's own batch shape, for the cost of a training step.
        at_step: updates the run has done.
        progress: told what is being done.
        reader: from :func:`fit_effect_reader`, which several runs may share; fitted here by default.

    Raises:
        UserError: the three splits share an episode, or clips are too short.
    """
    check_clips(clips, settings)
    test = clips["test"]
    draws = episode_draws(test["episode"].numpy(), settings.draws, settings.seed)

    progress("imagining")
    steering = Steering(model, clips, spec, settings)
    fair = roll_splits(model, clips, steering.fair, settings, decode=True)
    oracle = rollouts.roll(model, test, steering.oracle, settings, decode=True) if steering.oracle is not None else None
    progress("imagining with random weights")
    aimless = Steering(random_model, clips, spec, settings, judged=False)
    random = roll_splits(random_model, clips, aimless.fair, settings, decode=False)

    progress("probing the state")
    numbers = state_numbers(fair, oracle, random, clips, spec.factors, settings, draws)
    progress("training the common decoder")
    features_btd = rollouts.closed_loop_features(model, clips["train"], settings)
    own_frames = clips["train"]["frames"].flatten(0, 1)
    decoder = FittedDecoder(features_btd.flatten(0, 1), own_frames, settings.decoder_steps, settings.seed)
    progress("comparing frames")
    numbers |= frame_numbers(fair["test"], oracle, decoder, test, settings, draws)
    progress("reading codes and collapse")
    obedience = learn_obedience(clips["train"], spec)
    numbers |= code_numbers(steering.codes, clips, spec, obedience, settings)
    numbers |= leak_numbers(steering.codes, clips, spec, settings)
    numbers |= collapse_numbers(model, test, steering, settings)
    progress("trying actions")
    reader = reader or fit_effect_reader(clips["train"], spec, settings)
    numbers |= delta_psnr_numbers(model, clips, steering, spec, decoder, settings, draws)
    readings = readings_of(model, decoder, reader, features_btd, clips["train"], obedience)
    numbers |= control_numbers(model, test, steering, spec, obedience, readings, settings, draws)
    progress("measuring cost")
    numbers |= cost_numbers(model, test, steering.fair["test"], settings, train_batch, at_step)
    progress("drawing")
    pictures = draw_pictures(model, test, steering.fair["test"], decoder, settings)
    code_picture = picture_codes(model, test, steering, spec, obedience, decoder, settings)
    return RunScores(name, tuple(model.labels), steering.name, numbers, pictures, code_picture)


def fit_effect_reader(train: Batch, spec: ExperienceSpec, settings: Settings) -> EffectReader | str:
    """What reads effects off frames, from training clips alone: the same for every run. Or why there is none."""
    obedience = learn_obedience(train, spec)
    effect = obedience if isinstance(obedience, str) else obedience.effects(train, spec)
    return fit_reader(train, effect, settings.seed)


def roll_splits(
    model: WorldModelContract, clips: Clips, controls: Mapping[str, Tensor], settings: Settings, decode: bool
) -> dict[str, rollouts.Rollout]:
    """Rollouts of every split; frames, which only the test clips are scored on, there alone."""
    return {s: rollouts.roll(model, clips[s], controls[s], settings, decode and s == "test") for s in clips}


def check_clips(clips: Clips, settings: Settings) -> None:
    """Refuse clips that would make the numbers lie.

    Raises:
        UserError: the splits share an episode (a probe would recognise it), or clips are too short.
    """
    seen: dict[int, str] = {}
    for split, batch in clips.items():
        if batch["is_first"].shape[1] < settings.length:
            raise UserError(f"the {split} clips have {batch['is_first'].shape[1]} frames, {settings.length} are needed")
        for episode in batch["episode"].unique().tolist():
            if seen.setdefault(episode, split) != split:
                raise UserError(
                    f"episode {episode} is in the {seen[episode]} and in the {split} clips: split by episode"
                )


@torch.inference_mode()
def collapse_numbers(model: WorldModelContract, test: Batch, steering: Steering, settings: Settings) -> Numbers:
    """The collapse panel on one-step predictions from the first and the last moment that a clip allows."""
    device = rollouts.device_of(model)
    first, last = settings.context - 1, settings.length - 2
    per_clip = [first] if last == first else [first, last]
    enough = -(-settings.retrieval_pool // len(per_clip))
    predicted, targets, features = [], [], []
    some = {key: value[:enough] for key, value in test.items()}
    whole = rollouts.chunks(some, settings.batch_size, settings.length, device)
    for batch, controls in zip(whole, steering.fair["test"][:enough].split(settings.batch_size), strict=True):
        state, target = model.observe(batch), model.targets(batch)
        for t in per_clip:
            step = controls[:, t - first : t - first + 1].to(device)
            generator = torch.Generator(device).manual_seed(settings.seed)
            future = model.imagine(at(state, t), step, 1, settings.temperature, generator)
            predicted.append(model.features(future)[:, 0, 0].float().cpu())
            targets.append(target[:, t + 1].float().cpu())
            features.append(model.features(at(state, t)).float().cpu())
    pool = settings.retrieval_pool
    return collapse_panel(torch.cat(predicted)[:pool], torch.cat(targets)[:pool], torch.cat(features)[:pool])


def cost_numbers(
    model: WorldModelContract,
    test: Batch,
    controls: Tensor,
    settings: Settings,
    train_batch: Batch | None,
    at_step: int,
) -> Numbers:
    """Parameters, training step (in the first and in the last phase of training) and imagination."""
    numbers = cost.parameter_numbers(model)
    numbers["cost/train_step_cpu_ms_first"] = cost.train_step_ms(model, train_batch, 0, settings.repeats)
    numbers["cost/train_step_cpu_ms"] = cost.train_step_ms(model, train_batch, at_step, settings.repeats)
    with torch.inference_mode():
        context = next(rollouts.chunks(test, 64, settings.context, rollouts.device_of(model)))
        state = at(model.observe(context), settings.context - 1)
    for batch in (1, 64):
        numbers[f"cost/imagined_frames_per_s_b{batch}"] = cost.imagined_frames_per_second(
            model, state, controls[:64], batch, settings.temperature, settings.repeats
        )
    return numbers


@torch.inference_mode()
def draw_pictures(
    model: WorldModelContract, test: Batch, controls: Tensor, decoder: FittedDecoder, settings: Settings
) -> dict[str, Tensor]:
    """Rows of the contact sheet: observed and reconstructed up to the context, imagined after it."""
    rows = shown_clips(test, settings)
    some = {key: value[rows] for key, value in test.items()}
    state = next(iter(rollouts.imagined_chunks(model, some, controls[rows], settings)))
    frames_btchw, features_btd = model.decode(state), model.features(state).float().cpu()
    drawn = decoder(features_btd.flatten(0, 1)).unflatten(0, features_btd.shape[:2])
    pictures = (
        {"common decoder": drawn} if frames_btchw is None else {"own decoder": frames_btchw, "common decoder": drawn}
    )
    return {title: (x.float().cpu().clamp(0, 1) * 255).round().byte() for title, x in pictures.items()}


def shown_clips(test: Batch, settings: Settings) -> Tensor:
    """Rows of the clips in the pictures, the same for all runs: evenly spread over the test clips."""
    count = len(test["frames"])
    return torch.linspace(0, count - 1, min(settings.shown, count)).long()
