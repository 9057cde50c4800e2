"""``lit-wm compare RUN [RUN ...]``: judge runs by one scorecard, on the same held-out episodes."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from datamodules.index import Index
    from lit_wm.evaluation.scorecard import Scorecard
    from lit_wm.evaluation.settings import Settings
    from lit_wm.loading import LoadedRun
    from lit_wm.world_model import WorldModel

Clips = dict[str, dict[str, "Tensor"]]
START_CLIPS = 32  # about a training batch: what random weights are started on, where a route does so


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UserError: a number that cannot work.
    """
    parser = OneLineArgumentParser(prog="lit-wm compare", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or .ckpt files, of any route")
    parser.add_argument(
        "--out", type=Path, default=Path("scorecard"), help="folder for the scorecard (default: scorecard)"
    )
    parser.add_argument("--root", help="the shards, where they are no longer at the place the runs remember")
    parser.add_argument(
        "--clips", type=int, default=96, help="most test clips; probes train on three times as many (96)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the clips, the floors and the bootstrap (0)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's own choice)")
    options = parser.parse_args(argv)
    if options.seed >= 2**63:
        raise UserError(f"--seed is {options.seed}, it must be below 2**63")
    for name, least in (("clips", 32), ("seed", 0), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, it must be at least {least}")
    return options


def main(argv: list[str]) -> None:
    """Judge runs, write the scorecard, print its essence and where the rest is.

    Raises:
        UserError: runs that cannot be read, or that cannot be compared with each other.
    """
    options = arguments(argv)
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from lit_wm.evaluation.judge import STAGES, fit_effect_reader, judge
    from lit_wm.evaluation.scorecard import Scorecard
    from lit_wm.evaluation.settings import Settings
    from lit_wm.loading import load_run

    if options.threads:
        torch.set_num_threads(options.threads)
    runs = [load_run(path) for path in options.runs]
    names = unique_names(runs)
    index = common_data(runs, names, options.root)
    settings = Settings(seed=options.seed)
    clips = draw_clips(index, settings, options.clips)
    options.out.mkdir(parents=True, exist_ok=True)

    scores = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[doing]}"), TimeElapsedColumn())
    console = Console()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("all runs", total=1, doing="learning to read effects off frames")
        reader = fit_effect_reader(clips["train"], index.spec, settings)
        progress.update(task, completed=1, doing="done")
        for run, name in zip(runs, names, strict=True):
            task = progress.add_task(name, total=STAGES, doing="")
            score = judge(
                run.model,
                floor_model(run, clips["train"], options.seed),
                clips,
                index.spec,
                settings,
                name,
                train_batch(run, index),
                max(run.global_step - 1, 0),
                lambda doing, task=task: progress.update(task, advance=1, doing=doing),
                reader,
            )
            score.facts = facts(run)
            scores.append(score)
            progress.update(task, completed=STAGES, doing="done")
    card = Scorecard(describe(index, clips), settings, scores)
    write(card, clips["test"], options.out)
    summarise(card, console, options.out)


def unique_names(runs: list[LoadedRun]) -> list[str]:
    """A name for each run: its folder, with a number where folders are called alike."""
    names: list[str] = []
    for run in runs:
        taken = sum(name.split(" (")[0] == run.name for name in names)
        names.append(f"{run.name} ({taken + 1})" if taken else run.name)
    return names


def common_data(runs: list[LoadedRun], names: list[str], root: str | None) -> Index:
    """The shards all runs were trained on.

    Raises:
        UserError: runs trained on different data or on pictures of different size, or shards that are unknown, changed or
            of another environment.
    """
    from datamodules.index import read_index

    first, first_name = runs[0], names[0]
    for run, name in zip(runs[1:], names[1:], strict=True):
        for what, mine, other in (
            ("were trained on different data (hash", short(first.data_hash), short(run.data_hash)),
            ("see different observations (", shapes(first), shapes(run)),
        ):
            if mine != other:
                raise UserError(f"{first_name} and {name} {what} {mine} and {other}): compare runs of one recording")
    knows = next((pair for pair in zip(runs, names, strict=True) if pair[0].root), (first, first_name))
    index = read_index(root or remembered_root(*knows))
    root = index.root
    if first.data_hash is not None and index.data_hash != first.data_hash:
        raise UserError(
            f"the shards in {root} (hash {short(index.data_hash)}) are not those that {first_name} was trained on"
            f" ({short(first.data_hash)}): give --root FOLDER"
        )
    if "frames" not in index.spec.pictures:
        raise UserError(f"the shards in {root} hold no 'frames': the scorecard judges models of pictures")
    spec = first.model.spec  # of a run that was trained on no recording, no hash says that this one is of its kind
    if not spec.observations.items() <= index.spec.observations.items() or spec.action != index.spec.action:
        raise UserError(
            f"the shards in {root} are of another environment than {first_name}: give another --root FOLDER"
        )
    return index


def remembered_root(run: LoadedRun, name: str, option: str = "--root") -> Path:
    """The shards that a run was trained on, from the folder that holds its ``runs``, or from here.

    Args:
        run: the run.
        name: of it, for the message.
        option: that could name them, likewise.

    Raises:
        UserError: they are in neither place, or the run does not say.
    """
    if run.root is None:
        online = "env" in data_arguments(run)
        reason = "was trained online, on no recording" if online else "does not say where its shards are"
        raise UserError(f"{name} {reason}: give {option} FOLDER" + ", shards of the same environment" * online)
    for folder in (run.path.resolve().parent.parent / run.root, Path(run.root)):
        if folder.exists():
            return folder
    raise UserError(f"{name} was trained on {run.root}, which is not here: give {option} FOLDER")


def short(data_hash: str | None) -> str:
    """The beginning of a hash."""
    return (data_hash or "unknown")[:12]


def shapes(run: LoadedRun) -> str:
    """What a run's model sees, as ``frames 64x64x3``."""
    seen = run.model.spec.observations
    return ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in sorted(seen.items()))


def draw_clips(index: Index, settings: Settings, count: int) -> Clips:
    """The same clips for every run: ``count`` for testing, three times as many to fit probes on, half as many for penalties.

    Raises:
        UserError: no episode of a split is long enough.
    """
    from datamodules.episodes import fixed_clips

    counts = {"train": 3 * count, "val": max(count // 2, 32), "test": count}
    for split in counts:
        longest = max((steps for shard in index.of(split) for _, steps in shard.episodes), default=settings.length)
        if longest < settings.length:
            raise UserError(
                f"the scorecard needs episodes of at least {settings.length} steps ({settings.context} seen,"
                f" {settings.steps} imagined), the longest {split} episode in {index.root} has {longest}"
            )
    return {split: fixed_clips(index.root, split, settings.length, n, settings.seed) for split, n in counts.items()}


def floor_model(run: LoadedRun, train: Mapping[str, Tensor], seed: int) -> WorldModel:
    """The run's architecture with random weights, as a fit would begin: the floor that the run has to beat.

    Args:
        run: whose architecture.
        train: training clips.
        seed: of the weights.
    """
    import torch

    model = run.fresh_model(seed)
    rows = torch.linspace(0, len(train["frames"]) - 1, START_CLIPS).long()  # spread over the episodes
    model.start_from({key: value[rows] for key, value in train.items()})
    return model


def train_batch(run: LoadedRun, index: Index) -> dict[str, Tensor] | None:
    """A batch of the run's own shape, to time a training step on; None where its configuration does not say."""
    import torch

    from datamodules.episodes import fixed_clips

    data = data_arguments(run)
    if not {"batch_size", "clip_length"} <= data.keys():
        return None
    without = data.get("without") or []
    crossing = data.get("cross_episodes", "env" in data)  # what an agent replays runs on from episode to episode
    clips = fixed_clips(index.root, "train", data["clip_length"], data["batch_size"], 0, crossing)
    rows = torch.arange(data["batch_size"]) % len(clips["is_first"])
    return {key: value[rows] for key, value in clips.items() if key not in without}


def data_arguments(run: LoadedRun) -> dict[str, Any]:
    """``data.init_args`` of a run's configuration."""
    return (run.config.get("data") or {}).get("init_args") or {}


def facts(run: LoadedRun) -> dict[str, Any]:
    """What the scorecard prints about a run besides its scores."""
    data, trainer = data_arguments(run), run.config.get("trainer") or {}
    known = {"batch_size", "clip_length"} <= data.keys()
    accumulated = trainer.get("accumulate_grad_batches") or 1
    # the batch size is that of each rank
    frames = run.global_step * accumulated * run.ranks * data["batch_size"] * data["clip_length"] if known else None
    return {
        "route": run.model.route,
        "checkpoint": str(run.checkpoint),
        "seed": run.seed,
        "updates": run.global_step,
        "frames_seen": frames,
        "recipe": recipe(run.config) if run.config else None,
    }


def recipe(config: Mapping[str, Any]) -> str:
    """A hash of all that a configuration says, less what tells seeds of one recipe apart."""
    same = {key: value for key, value in config.items() if key not in ("seed_everything", "name", "runs", "ckpt_path")}
    data = dict(same.get("data") or {})
    data["init_args"] = {key: value for key, value in (data.get("init_args") or {}).items() if key != "seed"}
    return hashlib.sha256(json.dumps(same | {"data": data}, sort_keys=True, default=str).encode()).hexdigest()[:12]


def describe(index: Index, clips: Clips) -> dict[str, Any]:
    """What the runs were judged on."""
    import platform

    import torch

    height, width, channels = index.spec.observations["frames"]
    return {
        "hash": index.data_hash,
        "environment": ", ".join(f"{key}={value}" for key, value in index.environment.items()),
        "policy": index.policy,
        "resolution": f"{height}x{width}x{channels}",
        "splits": {
            split: {"clips": len(batch["episode"]), "episodes": len(batch["episode"].unique())}
            for split, batch in clips.items()
        },
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def write(card: Scorecard, test: Mapping[str, Tensor], out: Path) -> None:
    """Write scorecard.json, scorecard.md, rollouts.png, rollouts.gif, codes_RUN.png of runs with codes, and the TensorBoard folder."""
    from lit_wm.evaluation import render, render_codes, report, tensorboard_log

    rows = render.rows(card, test)
    context = card.settings.context
    render.contact_sheet(rows, context).save(out / "rollouts.png")
    render.write_gif(render.animation(rows, context), out / "rollouts.gif")
    codes = {run.name: out / f"codes_{run.name}.png" for run in card.runs if run.code_picture is not None}
    for run in card.runs:
        if run.code_picture is not None:
            render_codes.code_sheet(run.code_picture, run.name).save(codes[run.name])
    page = report.markdown(card)
    (out / "scorecard.md").write_text(page, encoding="utf-8")
    card.write_json(out / "scorecard.json")
    sheets = {"rollouts/contact_sheet": out / "rollouts.png", "rollouts/animation": out / "rollouts.gif"}
    tensorboard_log.write(card, page, sheets, codes, out / "tensorboard")


def summarise(card: Scorecard, console: Any, out: Path) -> None:
    """Print the essence in tables that fit 80 columns, scores beside their floors, and where to look next."""
    from rich.table import Table

    from lit_wm.evaluation.report_tables import Notes, fixed, whole

    middle = card.settings.horizons[len(card.settings.horizons) // 2]
    state = [(f"R2\nk={k}", f"state_r2/k{k}/task", fixed(2)) for k in card.settings.horizons if k]
    floors = ("random", "persistence", "pixels")
    state += [(f"floor k={middle}\n{floor}", f"state_r2_{floor}/k{middle}/task", fixed(2)) for floor in floors]
    others = [
        (f"PSNR k={middle}\nown", f"psnr_native/k{middle}", fixed(1)),
        ("\ncommon", f"psnr_common/k{middle}", fixed(1)),
        ("floor\ncopy", f"psnr_copy/k{middle}", fixed(1)),
        ("\nNMSE", "collapse/nmse", fixed(2)),
        ("CPU ms\na step", "cost/train_step_cpu_ms", whole),
        ("frames/s\nb64", "cost/imagined_frames_per_s_b64", whole),
    ]
    control = [
        ("delta-PSNR\ncodes", "delta_psnr/k4/codes", fixed(1)),
        ("\nactions", "delta_psnr/k4/actions", fixed(1)),
        ("codes,\nAMI", "codes/effect_ami", fixed(2)),
        ("\ntransfer", "codes/transfer_accuracy", fixed(2)),
        ("\nleak R2", "codes/leak_r2", fixed(2)),
        ("counter-\nfactual", "control/counterfactual_accuracy", fixed(2)),
    ]
    notes = Notes()
    for title, columns in (
        ("Task state read from what a run imagines k steps ahead, R2", state),
        ("Pictures, prediction, cost", others),
        ("Control: do actions do in imagination what they do in the world?", control),
    ):
        table = Table(title=title, title_justify="left", padding=(0, 0, 0, 1))
        table.add_column("run", overflow="fold")
        for head, *_ in columns:
            table.add_column(head, justify="right", no_wrap=True)
        for run in card.runs:
            cells = (notes.cell(run.numbers.get(tag), digits, interval=False) for _, tag, digits in columns)
            table.add_row(run.name, *cells)
        console.print(table)
    for line in notes.lines()[1:]:
        console.print(line.rstrip(), style="dim", highlight=False)
    for line in (
        f"All numbers with floors and intervals: {out / 'scorecard.md'} (and scorecard.json)",
        f"Rollouts side by side: {out / 'rollouts.gif'} and {out / 'rollouts.png'}",
        f"TensorBoard: tensorboard --logdir {out / 'tensorboard'} (Custom Scalars; smoothing 0)",
    ):
        console.print(line, highlight=False, soft_wrap=True)
