"""``lit-wm bench ROUTE``: CPU time of a full training step, its arithmetic, and how near it comes to the machine's ceiling.

The step is the Trainer's own, with the optimizer and what follows it (EMA target, slow critic). Everything is measured in
one run: the ceiling (a large matrix product) on the same threads just before the steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError

if TYPE_CHECKING:
    from lit_wm.contract import Batch
    from lit_wm.world_model import WorldModel

ACTIONS = 6


def main(argv: list[str]) -> None:
    """Measure one route and print, and with ``--json`` write, the result."""
    options = parse(argv)
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, model, batch = BUILDERS[options.route](options)
    result = measure(name, model, batch, options)
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """Options: those of every route, then a route's own."""
    parser = OneLineArgumentParser(prog="lit-wm bench", description=__doc__)
    routes = parser.add_subparsers(dest="route", required=True)
    for route in BUILDERS:
        sub = routes.add_parser(route, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--threads", type=positive, default=1, help="threads of torch")
        sub.add_argument("--runs", type=positive, default=7, help="measured steps, after one that is not")
        sub.add_argument("--batch", type=positive, default=16 if route == "dreamer" else 4, help="clips in a batch")
        sub.add_argument("--length", type=positive, default=64 if route == "dreamer" else 16, help="frames in a clip")
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
            sub.add_argument("--part", choices=("tokenizer", "world"), default="tokenizer", help="which stage's step")
        if route == "jepa":
            sub.add_argument("--action-free", action="store_true", help="without actions")
    return parser.parse_args(argv)


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


def experience(vector: bool = False) -> dict[str, Any]:
    """The description of the benchmark's data: 64x64 colour frames (or 24 numbers) and 6 discrete actions."""
    observations = {"vector": [24]} if vector else {"frames": [64, 64, 3]}
    return {
        "observations": observations,
        "action": {"kind": "discrete", "sizes": [ACTIONS], "names": []},
        "factors": [],
    }


def random_batch(size: int, length: int, vector: bool = False) -> Batch:
    """One clip batch of the data contract, filled with noise."""
    import torch

    batch = {key: torch.zeros(size, length, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")}
    batch["action"] = torch.randint(0, ACTIONS, (size, length))
    batch["reward"] = torch.randn(size, length)
    if vector:
        batch["vector"] = torch.randn(size, length, 24)
    else:
        batch["frames"] = torch.randint(0, 256, (size, length, 3, 64, 64), dtype=torch.uint8)
    return batch


def build(module: type[WorldModel], options: argparse.Namespace, **defaults: Any) -> WorldModel:
    """A route's model with the benchmark's defaults, overridden by ``--set``, which is checked as ``lit-wm fit`` checks.

    Raises:
        UserError: a key that the model does not have, or a value that it cannot take.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    from lit_wm.cli.unknown_keys import nearest

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module, skip={"experience"})
    parser.set_defaults(defaults)
    try:
        given = parser.instantiate_classes(parser.parse_args([f"--{word}" for word in options.set]))
    except ArgumentError as error:
        said = str(error).replace("unrecognized arguments: --", "nothing reads ")
        raise UserError(f"bench {options.route}: --set: {said}{nearest(str(error), parser)}") from error
    return module(experience(getattr(options, "observation", "image") == "vector"), **vars(given))


def build_dreamer(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """A full update: world model, actor and critic."""
    from lit_wm.dreamer import DreamerModule

    model = build(DreamerModule, options, size=options.size)
    batch = random_batch(options.batch, options.length, options.observation == "vector")
    return named(f"dreamer {model.hparams.size} {options.observation}", options), model, batch


def build_genie(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """One stage's step, at a small size unless ``--set`` asks for another."""
    from lit_wm.genie import GenieModule

    width = {"dim": 128, "heads": 4, "ffn": 512}
    coder = {**width, "encoder_blocks": 4, "decoder_blocks": 4}
    parts = {"tokenizer": {**coder, "patch": 8}, "lam": {**coder, "patch": 16}, "dynamics": {**width, "blocks": 4}}
    model = build(
        GenieModule,
        options,
        frames=options.length,
        order="tokenizer" if options.part == "tokenizer" else "staged",
        tokenizer_steps=0,  # staged from update 0: the latent actions and the dynamics
        **{f"{part}.{key}": value for part, sizes in parts.items() for key, value in sizes.items()},
    )
    return named(f"genie {options.part}", options), model, random_batch(options.batch, options.length)


def build_jepa(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """A step of encoder, predictor and target, at the model's default size unless ``--set`` asks for another."""
    from lit_wm.jepa import JEPAModule

    model = build(JEPAModule, options, actions=not options.action_free)
    kind = "with actions" if model.hparams.actions else "action-free"
    return named(f"jepa {kind}", options), model, random_batch(options.batch, options.length)


def named(kind: str, options: argparse.Namespace) -> str:
    """The title of a result: everything that changes what was measured."""
    return " ".join([kind, f"{options.batch}x{options.length}", *options.set])


BUILDERS: dict[str, Callable[[argparse.Namespace], tuple[str, Any, Any]]] = {
    "dreamer": build_dreamer,
    "genie": build_genie,
    "jepa": build_jepa,
}


def step_flops(model: WorldModel, batch: Batch) -> int:
    """Floating-point operations of one training step by the Trainer: matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode

    from lit_wm.evaluation.cost import train_step_runs

    with FlopCounterMode(display=False) as counter:
        train_step_runs(model, batch, 0, repeats=0)  # the uncounted step alone
    return counter.get_total_flops()


def measure(name: str, model: WorldModel, batch: Batch, options: argparse.Namespace) -> dict[str, Any]:
    """Median CPU time of a step, its FLOPs, and its share of the matrix-product ceiling."""
    from lit_wm.evaluation.cost import train_step_runs

    flops = step_flops(model, batch)
    ceiling = matmul_ceiling()
    runs = train_step_runs(model, batch, 0, options.runs)
    median = statistics.median(runs)
    return {
        "name": name,
        "threads": options.threads,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
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
    table.add_row("parameters (trained)", f"{result['parameters']:,}")
    table.add_row(
        "CPU ms per training step", f"{result['cpu_ms_median']:.0f} (median), {result['cpu_ms_min']:.0f} (least)"
    )
    table.add_row("every run", " ".join(f"{ms:.0f}" for ms in result["cpu_ms_runs"]))
    table.add_row("GFLOP per step", f"{result['flops'] / 1e9:.1f}")
    table.add_row(
        "share of the matmul ceiling",
        f"{result['share_of_ceiling']:.0%} of {result['ceiling_gflops_per_cpu_second']:.0f} GFLOP per CPU-second, "
        f"{result['threads']} thread(s)",
    )
    Console().print(table)
