"""``lit-wm bench ROUTE``: CPU time of a full training step, its arithmetic, and how near it comes to the machine's ceiling.

The step is the Trainer's own, with the optimizer and what follows it (EMA target, slow critic). Everything is measured in
one run: the ceiling (a large matrix product) on the same threads just before the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lit_wm.cli.parser import OneLineArgumentParser

if TYPE_CHECKING:
    from lightning import LightningModule

    from lit_wm.cli.bench_models import Subject
    from lit_wm.contract import Batch

ROUTES = ("dreamer", "genie", "jepa")
PRECISIONS = ("32-true", "bf16-mixed")
GENIE_PARTS = {
    "tokenizer": "the step of the first stage",
    "world": "the step of the second stage, frozen tokenizer and all",
    "latent_action": "the step of the latent action model alone",
    "dynamics": "the step of the dynamics alone, on ready tokens and codes",
    "sample": "no step, but one more frame in steady play: read the last one, refine the new one, decode it",
}


def main(argv: list[str]) -> None:
    """Measure one route and print, and with ``--json`` write, the result."""
    options = parse(argv)
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    from lit_wm.cli.bench_models import build_subject
    from lit_wm.cli.bench_play import measure_play

    subject = build_subject(options)
    result = measure_play(subject, options) if options.part == "sample" else measure(subject, options)
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """Options: those of every route, then a route's own."""
    parser = OneLineArgumentParser(prog="lit-wm bench", description=__doc__)
    routes = parser.add_subparsers(dest="route", required=True)
    for route in ROUTES:
        sub = routes.add_parser(route, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--threads", type=positive, default=1, help="threads of torch")
        sub.add_argument("--runs", type=positive, default=7, help="measured steps, after one that is not")
        sub.add_argument(
            "--batch",
            type=positive,
            default=16 if route == "dreamer" else None if route == "genie" else 4,
            help="clips in a batch" + "; 4, and one world with --part sample" * (route == "genie"),
        )
        sub.add_argument("--length", type=positive, default=64 if route == "dreamer" else 16, help="frames in a clip")
        sub.add_argument("--precision", choices=PRECISIONS, default="32-true", help="the Trainer's, of a training step")
        sub.add_argument("--json", type=result_file, help="write the result here")
        sub.add_argument(
            "--set",
            action="append",
            type=assignment,
            default=[],
            metavar="KEY=VALUE",
            help="a size of the model, named as in its config: dim=192, tokenizer.dim=512; repeatable",
        )
        if route == "dreamer":
            sub.add_argument("--size", default="size1m", help="preset")
            sub.add_argument(
                "--observation", choices=("image", "vector"), default="image", help="64x64x3, or 24 numbers"
            )
        if route == "genie":
            sub.add_argument(
                "--part",
                choices=tuple(GENIE_PARTS),
                default="tokenizer",
                help=" · ".join(f"{part}: {what}" for part, what in GENIE_PARTS.items()),
            )
        if route == "jepa":
            sub.add_argument("--action-free", action="store_true", help="without actions")
    parser.set_defaults(part=None)
    options = parser.parse_args(argv)
    if options.part == "sample" and options.precision != "32-true":
        parser.error("--precision is of a training step: leave it out with --part sample")
    if options.batch is None:
        options.batch = 1 if options.part == "sample" else 4
    return options


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def assignment(text: str) -> str:
    """``KEY=VALUE``."""
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE, for example dim=192")
    return text


def result_file(text: str) -> Path:
    """A path that a file can be written to: found out before anything is measured."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file in it")
    if blocked := next((p for p in path.parents if p.exists() and not p.is_dir()), None):
        raise argparse.ArgumentTypeError(f"{blocked} is not a folder")
    return path


def step_flops(model: LightningModule, batch: Batch) -> int:
    """Floating-point operations of one training step by the Trainer: matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    from lit_wm.evaluation.cost import train_step_runs

    with FlopCounterMode(display=False) as counter:
        train_step_runs(model, batch, 0, repeats=0)  # the uncounted step alone
    return counter.get_total_flops()


def measure(subject: Subject, options: argparse.Namespace) -> dict[str, Any]:
    """Median CPU time of a step, its FLOPs, and its share of the matrix-product ceiling."""
    from lit_wm.evaluation.cost import train_step_runs

    flops = step_flops(subject.model, subject.batch)
    ceiling = matmul_ceiling()
    runs = train_step_runs(subject.model, subject.batch, 0, options.runs, options.precision)
    median = statistics.median(runs)
    return {
        "name": subject.name,
        "threads": options.threads,
        "precision": options.precision,
        "parameters": subject.parameters,
        "cpu_ms_median": median,
        "cpu_ms_min": min(runs),
        "cpu_ms_runs": runs,
        "flops": flops,
        "ceiling_gflops_per_cpu_second": ceiling,
        "share_of_ceiling": flops / (median * 1e6) / ceiling,
    }


def matmul_ceiling(side: int = 1024, repeats: int = 7) -> float:
    """GFLOP per CPU-second of a float32 matrix product on the current threads: the best of several."""
    import torch

    a, b = torch.randn(side, side), torch.randn(side, side)
    torch.mm(a, b)
    best = 0.0
    for _ in range(repeats):
        start = time.process_time()
        torch.mm(a, b)
        best = max(best, 2 * side**3 / (time.process_time() - start) / 1e9)
    return best


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table(title=result["name"], show_header=False, title_justify="left")
    table.add_row("parameters" + " (trained)" * ("flops" in result), f"{result['parameters']:,}")
    what = f"training step, {result['precision']}" if "flops" in result else "frame"
    table.add_row(f"CPU ms per {what}", f"{result['cpu_ms_median']:.0f} (median), {result['cpu_ms_min']:.0f} (least)")
    table.add_row("every run", " ".join(f"{ms:.0f}" for ms in result["cpu_ms_runs"]))
    if "flops" in result:
        table.add_row("GFLOP per step", f"{result['flops'] / 1e9:.1f}")
        table.add_row(
            "share of the float32 matmul ceiling",
            f"{result['share_of_ceiling']:.0%} of {result['ceiling_gflops_per_cpu_second']:.0f} GFLOP per CPU-second, "
            f"{result['threads']} thread(s)",
        )
    else:
        table.add_row("wall ms per frame", f"{result['wall_ms_median']:.0f} (median), {result['threads']} thread(s)")
        table.add_row("CPU ms in unending play", f"{result['cpu_ms_unending']:.0f} (mean, the moving window included)")
    Console().print(table)
