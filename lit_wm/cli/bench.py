"""``lit-wm bench ROUTE``: CPU time of a full training step, its arithmetic, and how near it comes to the machine's ceiling.

Everything is measured in one run: the ceiling (a large matrix product) on the same threads just before the steps.
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
    parser = argparse.ArgumentParser(prog="lit-wm bench", description=__doc__)
    routes = parser.add_subparsers(dest="route", required=True)
    for route in BUILDERS:
        sub = routes.add_parser(route, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--threads", type=positive, default=1, help="threads of torch")
        sub.add_argument("--runs", type=positive, default=7, help="measured steps, after two that are not")
        sub.add_argument("--batch", type=positive, default=16 if route == "dreamer" else 4, help="clips in a batch")
        sub.add_argument("--length", type=positive, default=64 if route == "dreamer" else 16, help="frames in a clip")
        sub.add_argument("--json", type=Path, help="write the result here")
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


def build_dreamer(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """A full update: world model, actor and critic."""
    from lit_wm.dreamer import DreamerModule

    vector = options.observation == "vector"
    model = DreamerModule(experience(vector), size=options.size)
    name = f"dreamer {options.size} {options.observation} {options.batch}x{options.length}"
    return name, model, random_batch(options.batch, options.length, vector)


def build_genie(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """One stage's step at its small size."""
    from lit_wm.genie import GenieModule

    width = {"dim": 128, "heads": 4, "ffn": 512}
    coder = {**width, "encoder_blocks": 4, "decoder_blocks": 4}
    model = GenieModule(
        experience(),
        frames=options.length,
        tokenizer={**coder, "patch": 8},
        lam={**coder, "patch": 16},
        dynamics={**width, "blocks": 4},
        order="tokenizer" if options.part == "tokenizer" else "staged",
        tokenizer_steps=0,  # staged from update 0: the latent actions and the dynamics
    )
    return f"genie {options.part} {options.batch}x{options.length}", model, random_batch(options.batch, options.length)


def build_jepa(options: argparse.Namespace) -> tuple[str, WorldModel, Batch]:
    """A step of encoder, predictor and target."""
    from lit_wm.jepa import JEPAModule

    model = JEPAModule(experience(), actions=not options.action_free)
    kind = "action-free" if options.action_free else "with actions"
    return f"jepa {kind} {options.batch}x{options.length}", model, random_batch(options.batch, options.length)


BUILDERS: dict[str, Callable[[argparse.Namespace], tuple[str, Any, Any]]] = {
    "dreamer": build_dreamer,
    "genie": build_genie,
    "jepa": build_jepa,
}


def training_step(model: WorldModel, batch: Batch, optimizer: Any) -> None:
    """Loss, gradient, optimizer step, and what follows it."""
    losses = model.losses(batch)
    optimizer.zero_grad()
    sum(value for name, value in losses.items() if not name.startswith("_")).backward()
    optimizer.step()


def measure(name: str, model: WorldModel, batch: Batch, options: argparse.Namespace) -> dict[str, Any]:
    """Median CPU time of a step, its FLOPs, and its share of the matrix-product ceiling."""
    from torch.utils.flop_counter import FlopCounterMode

    configured = model.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured[0][0]
    with FlopCounterMode(display=False) as counter:
        training_step(model, batch, optimizer)
    training_step(model, batch, optimizer)
    ceiling = matmul_ceiling()
    runs = []
    for _ in range(options.runs):
        start = time.process_time()
        training_step(model, batch, optimizer)
        runs.append(1e3 * (time.process_time() - start))
    median = statistics.median(runs)
    flops = counter.get_total_flops()
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
