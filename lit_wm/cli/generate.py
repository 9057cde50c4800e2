"""``lit-wm generate RUN``: a world from one frame. RUN sees a recorded frame or a picture, is told what is done, and draws what it
imagines to follow, never seeing another frame."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import ExperienceError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.index import Index
    from lit_wm.evaluation.action_map import StandIn
    from lit_wm.loading import LoadedRun
    from lit_wm.play.controls import Controls

STEPS, FIT_CLIPS, FIT = 16, 256, "crop"
MOST_FRAMES = 2000  # shown in one sheet
HELD_OUT_FRAMES = 500  # that a picture is compared with


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UserError: a number that cannot work, or an option that nothing would read.
    """
    parser = OneLineArgumentParser(
        prog="lit-wm generate",
        description=__doc__,
        epilog="A list of actions is repeated from its beginning until there are --steps, and cut there. Without one: --each.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder or .ckpt file of a model that draws frames")
    parser.add_argument("--data", metavar="ROOT", help="a recording to begin from (default: what RUN was trained on)")
    parser.add_argument("--clip", type=int, help="begin in this test episode of it, counted from 0 (0)")
    parser.add_argument("--frame", type=int, help="at this frame, counted from 0 (the first that --context allows)")
    parser.add_argument("--context", type=int, help="recorded frames shown, that one the last (1)")
    parser.add_argument(
        "--picture", type=Path, help="begin from an image file instead; transparency is laid over black"
    )
    parser.add_argument("--fit", help="of the picture: crop its middle, pad with black, or stretch (crop)")
    steering = parser.add_mutually_exclusive_group()
    steering.add_argument("--actions", type=int, nargs="+", metavar="N", help="RUN's codes (or actions) by number")
    steering.add_argument("--labels", nargs="+", metavar="NAME", help="the environment's actions, by name or number")
    steering.add_argument("--each", action="store_true", help="a row for every code (or action), held all the time")
    parser.add_argument(
        "--fit_clips", type=int, help="labelled train clips that --labels finds each action's code on (256)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="frames imagined (16)")
    parser.add_argument("--samples", type=int, default=1, help="futures of each row (1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="1 draws as trained, 0 takes the likeliest (1)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--out", type=Path, default=Path("generated"), help="folder for the pictures (generated)")
    options = parser.parse_args(argv)
    bounds = {"context": (1, MOST_FRAMES), "steps": (1, MOST_FRAMES), "samples": (1, MOST_FRAMES)}
    bounds |= {"fit_clips": (1, 10**6), "temperature": (0, 10**6), "seed": (0, 2**63 - 1)}
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:  # nan is neither
            raise UserError(f"--{name} is {value}, it must be at least {least} and at most {most}")
    for name in ("clip", "frame", "context"):
        if options.picture is not None and getattr(options, name) is not None:
            raise UserError(f"--picture and --{name} are two ways to begin: give one of them")
    if options.fit is not None and options.picture is None:
        raise UserError("--fit is read with --picture alone: leave it out")
    if options.fit_clips is not None and options.labels is None:
        raise UserError("--fit_clips is read with --labels alone: leave it out")
    if options.samples > 1 and options.temperature == 0:
        raise UserError("--samples at --temperature 0 would all be equal: raise the temperature, or leave samples out")
    return options


def main(argv: list[str]) -> None:
    """Generate, write ``sheet.png``, ``animation.gif`` and ``frames.png``, say what was done.

    Raises:
        UserError, ExperienceError: a run that draws nothing or cannot be steered so, or nothing to begin from.
    """
    options = arguments(argv)
    from lit_wm.evaluation import render
    from lit_wm.loading import load_run
    from lit_wm.play.open_loop import generate

    run = load_run(options.run)
    if "frames" not in run.model.spec.pictures:
        raise UserError(f"{run.name} sees no picture 'frames': there is nothing to draw")
    prompt = begin(options, run)
    controls = steer(options, run)
    seen = prompt["frames"].shape[1] + 1
    count = len(controls.values) * options.samples * (seen + options.steps)
    if count > MOST_FRAMES:
        raise UserError(f"that would be {count:,} frames, more than {MOST_FRAMES:,}: lower --steps or --samples")
    frames = generate(run.model, prompt, controls.values, options.samples, options.temperature, options.seed)
    heads = ["seen"] * (seen - 1) + ["redrawn"]
    heads += [f"+{k + 1}" + (f" {controls.steps[k]}" if controls.steps else "") for k in range(options.steps)]
    rows = dict(zip(controls.titles, frames, strict=True))
    options.out.mkdir(parents=True, exist_ok=True)
    render.contact_sheet(rows, seen, "sample", heads).save(options.out / "sheet.png")
    render.write_gif(render.animation(rows, seen, heads), options.out / "animation.gif")
    render.strips(rows).save(options.out / "frames.png")
    for name in ("sheet.png", "animation.gif", "frames.png"):
        print(options.out / name)


def begin(options: argparse.Namespace, run: LoadedRun) -> dict[str, Tensor]:
    """The prompt, and a line about it.

    Raises:
        UserError, ExperienceError: there is none.
    """
    from lit_wm.play.prompt import picture_prompt, recorded_prompt

    if options.picture is not None:
        prompt = picture_prompt(options.picture, options.fit or FIT, run.model.spec)
        print(f"{options.picture}: {how_far(prompt['frames'][0, 0], options, run)}")
        return prompt
    index = recording(options, run)
    mine, there = run.model.spec, index.spec
    if "actions" in run.model.labels and mine.action != there.action:
        raise UserError(f"{index.root} is of another environment than {run.name}: its actions are others")
    if missing := sorted(key for key in mine.observations if mine.observations[key] != there.observations.get(key)):
        raise UserError(f"{run.name} also sees '{missing[0]}', which {index.root} does not hold as it was")
    context = options.context or 1
    clip, frame = options.clip or 0, context - 1 if options.frame is None else options.frame
    prompt = recorded_prompt(index, clip, frame, context)
    print(f"begins at frame {frame} of test episode {clip} in {index.root}")
    return prompt


def recording(options: argparse.Namespace, run: LoadedRun) -> Index:
    """The recording that is begun from, that labels come from, and that pictures are compared with.

    Raises:
        UserError, ExperienceError: it is not there, was changed, or shows other frames than the model was built for.
    """
    from datamodules.index import read_index
    from lit_wm.cli.compare import remembered_root, short

    index = read_index(options.data or remembered_root(run, run.name, "--data"))
    if not options.data and run.data_hash not in (None, index.data_hash):
        raise UserError(
            f"the shards in {index.root} (hash {short(index.data_hash)}) are not those that {run.name} was trained on"
            f" ({short(run.data_hash)}): give --data FOLDER"
        )
    shapes = [spec.observations.get("frames") for spec in (index.spec, run.model.spec)]
    if shapes[0] != shapes[1]:
        sizes = ["no frames" if shape is None else "x".join(map(str, shape)) for shape in shapes]
        raise UserError(f"{index.root} shows {sizes[0]}, but {run.name} was built for {sizes[1]}: give other --data")
    return index


def how_far(picture_chw: Tensor, options: argparse.Namespace, run: LoadedRun) -> str:
    """How far a picture lies from the data, in words; why this is not known, where no data is at hand and none was named."""
    from datamodules.windows import fixed_clips
    from lit_wm.play.distance import distance
    from lit_wm.play.prompt import SPLIT

    try:
        index = recording(options, run)
        held_out = fixed_clips(index.root, SPLIT, 1, HELD_OUT_FRAMES)
    except (UserError, ExperienceError) as error:
        if options.data:
            raise
        return f"how far it lies from the data is not known ({error})"
    found = distance(picture_chw, held_out["frames"][:, 0], held_out["episode"])
    text = f"mean squared error {found.error:.5f} to the nearest of {found.frames} held-out frames"
    if found.nearer is None:
        return f"{text}, which are all of one episode, so that nothing says whether that is far"
    return f"{text}; {found.nearer:.1%} of those have one of another episode nearer than that"


def steer(options: argparse.Namespace, run: LoadedRun) -> Controls:
    """What is done.

    Raises:
        UserError, ExperienceError: it cannot be done in this model's world.
    """
    from lit_wm.play.controls import by_number, check_numbers, choices, numbers_of, one_world, world_for_each

    model, space = run.model, run.model.spec.action
    if options.labels and model.action_space == "codes":
        return steer_by_labels(options, run)
    if options.fit_clips is not None:
        raise UserError(f"--fit_clips: {run.name} takes the environment's actions as they are, leave it out")
    names, meaning = choices(model, space), by_number(model, space)
    if not (options.labels or options.actions):
        return world_for_each(meaning, names, options.steps)
    numbers = options.actions or numbers_of(options.labels, names)
    check_numbers(numbers, names, "code" if model.action_space == "codes" else "action")
    words = options.labels or [str(number) for number in numbers]
    return one_world(words, numbers, meaning, names, options.steps)


def steer_by_labels(options: argparse.Namespace, run: LoadedRun) -> Controls:
    """What is done in the world of a model with codes, by the environment's actions, and a line about each of these.

    Raises:
        UserError, ExperienceError: no labelled steps, no such action, or one that nobody did in them.
    """
    from datamodules.windows import fixed_clips
    from lit_wm.evaluation.action_map import fit_action_map, labelled_steps
    from lit_wm.evaluation.settings import Settings
    from lit_wm.play.controls import action_names, numbers_of, one_world

    index, settings = recording(options, run), Settings()
    names = action_names(index.spec.action)
    numbers = numbers_of(options.labels, names)
    longest = [
        max((n for shard in index.of(split) for _, n in shard.episodes), default=0) for split in ("train", "test")
    ]
    length = max(2, min(settings.length, *longest))
    count = options.fit_clips or FIT_CLIPS
    clips = [fixed_clips(index.root, split, length, count, options.seed) for split in ("train", "test")]
    stands_in = fit_action_map(*(labelled_steps(run.model, some, index.spec.action, settings) for some in clips))
    for number in dict.fromkeys(numbers):
        if number not in stands_in:
            raise UserError(
                f"'{names[number]}' does not occur in the labelled clips: no code stands for it; raise --fit_clips"
            )
        found = stands_in[number]
        print(f"{names[number]}: {how_right(names[number], found)}")
        if found.mostly != number:
            print(
                f"lit-wm generate: no code stands for '{names[number]}': the one it most often has more often means"
                f" '{names[found.mostly]}'",
                file=sys.stderr,
            )
    meaning = {number: found.control for number, found in stands_in.items()}
    return one_world(options.labels, numbers, meaning, names, options.steps)


def how_right(name: str, found: StandIn) -> str:
    """What stands for an action, and how often it was right on clips that it was not found on."""
    vector = found.control.is_floating_point()
    stands, has = ("its mean vector", "nearest to it") if vector else (f"code {int(found.control)}", "with it")
    if found.right is None:
        return f"{stands}; no held-out step is one {has}"
    did = "nobody did it there" if found.found is None else f"{found.found:.0%} of the '{name}' steps are among these"
    return f"{stands}; {found.right:.0%} of the {found.steps:,} held-out steps {has} are '{name}', {did}"
