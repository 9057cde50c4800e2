"""``lit-wm ablate FILE``: train what is missing of an ablation, then print and write its table, plot and verdicts."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError

if TYPE_CHECKING:
    from lit_wm.ablation.running import Runner

FOLDER = "ablations"  # among the configurations
CLIPS = 96  # test clips of the scorecard


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UserError: a number that cannot work, or no file.
    """
    parser = OneLineArgumentParser(prog="lit-wm ablate", description=__doc__)
    parser.add_argument("file", nargs="?", help="configs/ablations/NAME.yaml")
    parser.add_argument(
        "--list", action="store_true", help="all ablations that come with lit_wm, and their last verdicts"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (5)")
    parser.add_argument("--budget", help="one of the file's budgets (its first)")
    parser.add_argument("--jobs", type=int, default=1, help="runs that train at the same time (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs") / FOLDER, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("scorecards") / FOLDER, help="folder of the results")
    parser.add_argument("--dry_run", action="store_true", help="say what would be trained, and by which command")
    options = parser.parse_args(argv)
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}, it must be at least 1")
    if (options.file is None) != options.list:
        raise UserError("ablate: give one file, or --list; lit-wm ablate --help shows the options")
    return options


def main(argv: list[str]) -> None:
    """Run, or say what there is.

    Raises:
        UserError: a file that cannot be read or says something that nothing reads.
    """
    options = arguments(argv)
    if options.list:
        print_list(options.out)
        return
    from rich.console import Console

    from lit_wm.ablation import report
    from lit_wm.ablation.definition import read_ablation
    from lit_wm.ablation.running import Runner
    from lit_wm.cli.train import config_file

    ablation = read_ablation(Path(config_file(options.file)), options.budget, config_file)
    console = Console(highlight=False, soft_wrap=True)
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    seeds = list(range(options.seeds))
    runner = Runner(ablation, options.runs, Judge(threads), threads, console.print)
    check_commands(runner)
    if options.dry_run:
        dry_run(runner, seeds)
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: trainings are stopped too
    try:
        outcomes = runner.run(seeds, options.jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
    out = options.out / f"{ablation.name}-{ablation.budget}"
    console.print(report.write(ablation, seeds, outcomes, datetime.date.today().isoformat(), out))
    console.print(", ".join(str(out / name) for name in (report.TABLE, report.PLOT, report.RESULTS)))


class Judge:
    """Scores finished runs, all on the same clips.

    Args:
        threads: of torch, as many as a training has.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.clips: dict[str, Any] = {}  # by the hash of the data

    def __call__(self, folder: Path, measures: Sequence[str]) -> dict[str, dict[str, Any]]:
        from lit_wm.ablation.measures import MEASURES
        from lit_wm.cli.compare import common_data, draw_clips
        from lit_wm.evaluation.settings import Settings
        from lit_wm.loading import load_run

        run, settings = load_run(folder), Settings()
        index = common_data([run], [run.name], None)
        if index.data_hash not in self.clips:
            self.clips[index.data_hash] = draw_clips(index, settings, CLIPS)
        clips = self.clips[index.data_hash]
        return {
            part: {tag: n.to_dict() for tag, n in MEASURES[part](run.model, clips, index.spec, settings).items()}
            for part in measures
        }


def check_commands(runner: Runner) -> None:
    """Parse what every arm asks for, so that a misspelt key is found now and not when its turn comes.

    Raises:
        UserError: names the arm.
    """
    from lit_wm.cli.train import main as fit

    for name, overrides in (runner.ablation.first | runner.ablation.arms).items():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            try:
                fit([*runner.command(overrides, 0), "--print_config"])
            except UserError as error:
                raise UserError(f"{runner.ablation.name}: {name}: {error}") from error


def dry_run(runner: Runner, seeds: Sequence[int]) -> None:
    """Print the command of every run that is not trained yet, and how many there are."""
    import shlex

    from lit_wm.ablation.running import read_scores

    kinds = [*runner.ablation.first.values(), *runner.ablation.arms.values()]
    every = {runner.folder(overrides, seed): (overrides, seed) for seed in seeds for overrides in kinds}
    missing = [one for folder, one in every.items() if not read_scores(folder).get("trained")]
    for one in missing:
        print("lit-wm", shlex.join(runner.command(*one)))
    print(f"{runner.ablation.name}, budget {runner.ablation.budget}: {len(missing)} of {len(every)} runs to train")


def print_list(out: Path) -> None:
    """Every ablation that comes with lit_wm: its question, and what was found here when it last ran."""
    import yaml

    import lit_wm.configs
    from lit_wm.ablation.report import RESULTS

    for file in sorted((Path(lit_wm.configs.__file__).parent / FOLDER).glob("*.yaml")):
        print(f"configs/{FOLDER}/{file.name}: {yaml.safe_load(file.read_text())['question']}")
        for found in sorted(out.glob(f"{file.stem}-*/{RESULTS}")):
            said = json.loads(found.read_text())
            for claim in said["claims"]:
                print(f"  {said['date']}, {said['budget']}: {claim['verdict']['word']}: {claim['says']}")
