"""``lit-wm plan RUN...``: reach a goal that is given as a picture, by planning in trained world models. The task: the sprites world's
rooms, a wall with one door between start and goal, a budget of twice the oracle's path."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lit_wm.cli.parser import OneLineArgumentParser
from lit_wm.errors import UserError

if TYPE_CHECKING:
    from lit_wm.loading import LoadedRun
    from lit_wm.planning.agent import PlanningAgent
    from lit_wm.planning.rooms import Outcome

PLANNERS = ("cem", "icem", "mppi", "gradient")
COSTS = ("latent", "probe")
BASELINES = {
    "random": "random play",
    "straight": "straight line, wall or not",
    "true world": "the same planner in the true world",
}


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse and check the command line.

    Raises:
        UserError: a number that cannot work, or an option that nothing would read.
    """
    parser = OneLineArgumentParser(prog="lit-wm plan", description=__doc__)
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="run folders of models that take the environment's actions"
    )
    parser.add_argument(
        "--size", type=int, choices=(32, 64), help="side of the pictures (what the runs see; 64 without any)"
    )
    parser.add_argument("--episodes", type=int, default=200, help="played by each (200)")
    parser.add_argument("--side_by_side", type=int, default=50, help="of them at once: bounds memory (50)")
    parser.add_argument("--planner", default="cem", choices=PLANNERS, help="how action sequences are sought (cem)")
    parser.add_argument(
        "--samples", type=int, default=300, help="sequences judged in an iteration (300; gradient: sought at once)"
    )
    parser.add_argument("--iterations", type=int, default=4, help="of the planner, at every step (4)")
    parser.add_argument("--horizon", type=int, default=24, help="decisions of a plan (24)")
    parser.add_argument("--hold", type=int, default=1, help="steps for which a decision is held (1)")
    parser.add_argument("--execute", type=int, default=1, help="steps done before the next plan (1)")
    parser.add_argument(
        "--along",
        type=float,
        default=0.2,
        help="weight of the mean distance along the way against that of the end (.2)",
    )
    parser.add_argument(
        "--stick", type=float, default=0.75, help="probability that a drawn sequence repeats its last action (.75)"
    )
    parser.add_argument(
        "--cost",
        default="latent",
        choices=COSTS,
        help="distance between representations, or between probed places (latent)",
    )
    parser.add_argument("--data", metavar="ROOT", help="labelled recording for --cost probe (what RUN was trained on)")
    parser.add_argument("--seed", type=int, default=0, help="of the episodes and the planner (0)")
    parser.add_argument("--out", type=Path, default=Path("scorecards/plan"), help="folder for plan.md and plan.json")
    options = parser.parse_args(argv)
    for name, least in (("episodes", 1), ("side_by_side", 1), ("seed", 0), ("samples", 1), ("iterations", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} is {getattr(options, name)}, it must be at least {least}")
    if options.data is not None and options.cost != "probe":
        raise UserError("--data is read with --cost probe alone: leave it out")
    return options


def make_planner(options: argparse.Namespace) -> Any:
    """The planner that the options name."""
    from lit_wm.planning.gradient import GradientPlanner
    from lit_wm.planning.sampling import CEM, MPPI, icem

    if options.planner == "gradient":
        return GradientPlanner(options.samples, options.iterations)
    if options.planner == "mppi":
        return MPPI(options.samples, iterations=options.iterations)
    elites = max(2, options.samples // 15)
    if options.planner == "icem":
        return icem(options.samples, elites, options.iterations)
    return CEM(options.samples, elites, options.iterations, momentum_mean=0.1, keep=0.3, follow_best=True)


def main(argv: list[str]) -> None:
    """Play, print the table, and write it."""
    options = arguments(argv)

    import torch

    from datamodules.envs.sprites import SpritesEnv
    from lit_wm.loading import load_run
    from lit_wm.planning.agent import Horizon, PlanningAgent
    from lit_wm.planning.rooms import TrueWorld

    runs = [load_run(Path(run)) for run in options.runs]
    size = picture_size(runs, options.size)
    make = partial(SpritesEnv, size=size, rooms=True)
    env = make()
    horizon = Horizon(options.horizon, options.hold, options.execute, options.along, stick=options.stick)
    agent = partial(
        PlanningAgent, planner=make_planner(options), space=env.experience.action, horizon=horizon, seed=options.seed
    )
    torch.manual_seed(options.seed)
    players: dict[str, Callable[[], tuple[Any, PlanningAgent | None]]] = {
        "random": lambda: (scripted("random", env, options.seed), None),
        "straight": lambda: (scripted("straight", env, options.seed), None),
        "true world": lambda: planned(agent(TrueWorld(env))),
    }
    for run in runs:
        players[run.name] = lambda run=run: planned(agent(run.model, embed=embedding(run, env, options)))
    rows = []
    for name, player in players.items():
        act, planning = player()
        outcome = play_all(make, options, act, planning)
        rows.append(row(name, outcome, planning))
        print(f"{BASELINES.get(name, name)}: {rows[-1]['success']:.1%} of {options.episodes}", flush=True)
    write(options, size, rows)


def picture_size(runs: list[LoadedRun], asked: int | None) -> int:
    """Side of the pictures that all runs see.

    Raises:
        UserError: they see others, or none.
    """
    sizes = {run.name: run.model.spec.observations.get("frames") for run in runs}
    wanted = asked or next((shape[0] for shape in sizes.values() if shape), 64)
    for name, shape in sizes.items():
        if shape != (wanted, wanted, 3) or wanted not in (32, 64):
            raise UserError(f"{name} sees {shape}, the rooms here are {wanted} pixels a side (32 or 64, RGB)")
    return wanted


def embedding(run: LoadedRun, env: Any, options: argparse.Namespace) -> Any:
    """What distances to the goal are taken in; None: the model's own representation."""
    if options.cost == "latent":
        return None
    from datamodules.windows import fixed_clips
    from lit_wm.planning.costs import probed

    root = options.data or run.root
    if root is None:
        raise UserError(f"{run.name} was trained on no recording: give --data ROOT for --cost probe")
    clips = [fixed_clips(root, split, 4, count) for split, count in (("train", 2000), ("val", 500))]
    return probed(run.model, *clips, env.experience.factors, ("agent_x", "agent_y"))


def planned(agent: PlanningAgent) -> tuple[Any, PlanningAgent]:
    """Do what the agent plans."""
    return (lambda history, envs: agent.act(history).argmax(-1).numpy()), agent


def scripted(name: str, env: Any, seed: int) -> Any:
    """Do what a scripted policy does, which reads the true state."""
    from datamodules.policies import make_policy

    policy, memory = make_policy(name, "sprites", env.experience, seed), {}

    def act(history: Any, envs: list[Any]) -> Any:
        first = history["frames"].shape[1] == 1
        before = policy.initial_state(len(envs)) if first else memory["state"]
        seen = {"state": history["state"][:, -1].numpy()}
        actions, memory["state"], _ = policy.act(seen, history["is_first"][:, -1].numpy(), before)
        return actions

    return act


def play_all(make: Any, options: argparse.Namespace, act: Any, planning: PlanningAgent | None) -> Outcome:
    """All episodes, some at a time; every player gets the same ones."""
    import numpy as np

    from lit_wm.planning.rooms import Outcome, play

    seeds = [int(s) for s in np.random.SeedSequence([options.seed, 0x504C4E]).generate_state(options.episodes)]
    parts = [seeds[i : i + options.side_by_side] for i in range(0, len(seeds), options.side_by_side)]
    found = [play(make, part, planning.begin if planning else None, act) for part in parts]
    return Outcome(np.concatenate([x.reached for x in found]), np.concatenate([x.steps for x in found]))


def row(name: str, outcome: Outcome, planning: PlanningAgent | None) -> dict[str, Any]:
    """A line of the table, in plain types."""
    rate, low, high = outcome.rate()
    return {
        "player": name,
        "success": rate,
        "low_95": low,
        "high_95": high,
        "episodes": len(outcome.reached),
        "mean_steps": float(outcome.steps.mean()),
        "median_seconds_per_plan": median(planning.seconds) if planning else None,
        "reached": outcome.reached.tolist(),
    }


def write(options: argparse.Namespace, size: int, rows: list[dict[str, Any]]) -> None:
    """``plan.json`` and ``plan.md`` under ``options.out``, and the table on the screen."""
    options.out.mkdir(parents=True, exist_ok=True)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    (options.out / "plan.json").write_text(
        json.dumps({"options": asked | {"size": size}, "players": rows}, indent=1) + "\n"
    )
    titles = ("player", "success [95 %]", "steps", "seconds a plan")
    cells = [
        (
            BASELINES.get(r["player"], r["player"]),
            f"{r['success']:.3f} [{r['low_95']:.3f}, {r['high_95']:.3f}]",
            f"{r['mean_steps']:.1f}",
            "-" if r["median_seconds_per_plan"] is None else f"{r['median_seconds_per_plan']:.2f}",
        )
        for r in rows
    ]
    lines = ["| " + " | ".join(line) + " |" for line in (titles, ("---",) * len(titles), *cells)]
    words = (
        f"Rooms of {size} pixels, {options.episodes} episodes, the same for all; {options.planner} of {options.samples} samples and"
        f" {options.iterations} iterations over {options.horizon} x {options.hold} steps, cost: {options.cost}. Intervals: Wilson.\n"
        f"A plan is for {options.side_by_side} episodes at once.\n"
    )
    (options.out / "plan.md").write_text(words + "\n" + "\n".join(lines) + "\n")
    table = Table(*titles, box=SIMPLE)
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    print(f"{words}all of it in {options.out}")
