"""What an imitation experiment found: every seed's number, intervals over seeds, a curve and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lit_wm.evaluation.statistics import paired_t, t_interval

BASELINES = {
    "expert": "the expert itself",
    "oracle": "oracle, told every action",
    "random": "random actions",
}


ENDS = ("mean", "low_95", "high_95")


@dataclass
class Result:
    """Mean returns, one for each seed that is finished.

    Attributes:
        facts: what was compared, plain types.
        seeds: all that are to be run.
        imitation: labelled steps n -> a mean return for each seed.
        baselines: likewise, by the names of ``BASELINES``.
        reasons: why a baseline has no numbers.
        accuracy: share of held-out steps at which a policy's likeliest class is the expert's, ``codes`` and ``actions``.
    """

    facts: dict[str, Any]
    seeds: Sequence[int]
    imitation: dict[int, list[float]]
    baselines: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in BASELINES})
    reasons: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=lambda: {"codes": [], "actions": []})

    def to_dict(self) -> dict[str, Any]:
        """What ``imitation.json`` holds."""
        done = len(self.baselines["oracle"])
        baselines = {name: summary(values) for name, values in self.baselines.items()}
        for name, reason in self.reasons.items():
            baselines[name]["reason"] = reason
        return {
            **self.facts,
            "seeds": list(self.seeds[:done]),
            "unfinished_seeds": list(self.seeds[done:]),
            "imitation": [
                {"labels": n} | summary(values) | {"less_oracle": self.less_oracle(values)}
                for n, values in self.imitation.items()
            ],
            **baselines,
            "held_out_accuracy": {name: summary(values) for name, values in self.accuracy.items() if values},
        }

    def less_oracle(self, values: Sequence[float]) -> dict[str, float] | None:
        """Mean difference to the oracle of the same seeds with its paired interval; None for fewer than two seeds."""
        if len(values) < 2:
            return None
        return dict(zip(ENDS, paired_t(values, self.baselines["oracle"]), strict=True))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Every seed's number, their mean, and Student's interval of it where there are two or more."""
    if not values:
        return {"by_seed": [], "mean": None}
    if len(values) == 1:
        return {"by_seed": list(values), "mean": values[0]}
    return {"by_seed": list(values), **dict(zip(ENDS, t_interval(values), strict=True))}


def write_json(result: Result, path: Path) -> None:
    """Write all of it."""
    path.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")


def draw_curve(result: Result, path: Path) -> None:
    """Return over the number of labelled steps, beside the baselines; bands are intervals over seeds, dots are seeds."""
    from matplotlib.figure import Figure  # not pyplot: no window system is asked for

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    n = list(result.imitation)
    found = [summary(values) for values in result.imitation.values()]
    axes.plot(n, [one["mean"] for one in found], "o-", color="C0", label="codes, mapped by n labelled steps")
    axes.fill_between(
        n, *([one.get(end, one["mean"]) for one in found] for end in ("low_95", "high_95")), color="C0", alpha=0.2
    )
    for labels, one in zip(n, found, strict=True):
        axes.plot([labels] * len(one["by_seed"]), one["by_seed"], ".", color="C0", alpha=0.5, markersize=4)
    for colour, (name, values) in zip(("C2", "C1", "C7"), result.baselines.items(), strict=True):
        if values:
            one = summary(values)
            axes.axhline(one["mean"], color=colour, linestyle="--", label=BASELINES[name])
            axes.axhspan(one.get("low_95", one["mean"]), one.get("high_95", one["mean"]), color=colour, alpha=0.15)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(n[0] - 0.3 * (n[0] < 1), 1.3 * max(n[-1], 1))
    axes.set_xticks(n, [f"{labels:,}" for labels in n])
    axes.minorticks_off()
    axes.set_xlabel("labelled steps n")
    axes.set_ylabel(f"return, mean of {result.facts['episodes']} episodes")
    axes.set_title(f"{result.facts['run']}: behaviour from video, {len(result.baselines['oracle'])} seeds", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def show(result: Result, console: Console) -> None:
    """Print the curve as a table that fits 80 columns."""
    title = f"Return in {result.facts['environment']['id']}: codes mapped by n labelled steps, and baselines"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("mean [95 %]", justify="right", no_wrap=True)
    table.add_column("less oracle [95 %]", justify="right", no_wrap=True)
    table.add_column("each seed", justify="right", overflow="fold")
    rows = [(f"n={n:,}", values) for n, values in result.imitation.items()]
    for name, values in rows + list(result.baselines.items()):
        less = None if name == "oracle" else result.less_oracle(values)
        table.add_row(
            name,
            interval(summary(values)) if values else "n/a",
            interval(less) if less else "",
            " ".join(f"{value:.2f}" for value in values),
        )
    console.print(table)
    for name, reason in result.reasons.items():
        console.print(f"{name}: n/a, {reason}", style="dim", highlight=False)


def interval(found: dict[str, Any]) -> str:
    """``1.23 [1.10, 1.36]``, or the mean alone."""
    ends = f" [{found['low_95']:.2f}, {found['high_95']:.2f}]" if "low_95" in found else ""
    return f"{found['mean']:.2f}{ends}"
