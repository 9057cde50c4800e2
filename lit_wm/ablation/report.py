"""An ablation's results: every seed in ``results.json``, a table and verdicts in ``table.md``, dots and intervals in ``plot.png``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lit_wm.ablation.definition import Ablation
from lit_wm.ablation.running import Outcome
from lit_wm.ablation.verdict import Scores, judge_claim, of_tag, summary

RESULTS, TABLE, PLOT = "results.json", "table.md", "plot.png"


def scores_of(outcomes: Sequence[Outcome]) -> Scores:
    """Arm -> seed -> tag -> value, of the runs that did not fail."""
    scores: dict[str, dict[int, dict[str, float | None]]] = {}
    for outcome in outcomes:
        if not outcome.failed:
            scores.setdefault(outcome.arm, {})[outcome.seed] = outcome.numbers
    return scores


def results(ablation: Ablation, seeds: Sequence[int], outcomes: Sequence[Outcome], date: str) -> dict[str, Any]:
    """Everything, as plain types."""
    scores = scores_of(outcomes)
    return {
        "ablation": ablation.name,
        "budget": ablation.budget,
        "question": ablation.question,
        "date": date,
        "base": ablation.base.name,
        "seeds": list(seeds),
        "arms": {
            arm: {
                "overrides": ablation.arms[arm],
                "runs": {
                    str(o.seed): {"run": o.folder.name, "failed": o.failed, **o.cost, "numbers": o.numbers}
                    for o in outcomes
                    if o.arm == arm
                },
            }
            for arm in ablation.arms
        },
        "claims": [asdict(claim) | {"verdict": asdict(judge_claim(claim, scores))} for claim in ablation.claims],
    }


def markdown(ablation: Ablation, outcomes: Sequence[Outcome], date: str) -> str:
    """The table that goes into a README: each arm's mean with its t-interval over seeds, and every seed of the first column."""
    scores = scores_of(outcomes)
    first = ablation.columns[0]
    seeds = sorted({outcome.seed for outcome in outcomes})
    lines = [
        f"{ablation.question} Seeds {' '.join(map(str, seeds))}; mean [95 % t-interval over seeds]; budget {ablation.budget}; {date}.",
        "",
        "| arm | " + " | ".join(ablation.columns) + f" | {first}, each seed | CPU-s |",
        "|---|" + "---|" * (len(ablation.columns) + 2),
    ]
    for arm in ablation.arms:
        cells = [cell(of_tag(scores, arm, tag), len(seeds)) for tag in ablation.columns]
        of_arm = [outcome for outcome in outcomes if outcome.arm == arm]
        each = " ".join("failed" if o.failed else digits(o.numbers.get(first)) for o in of_arm)
        costs = [o.cost["cpu_s"] for o in of_arm if o.cost]
        cost = f"{sum(costs) / len(costs):.0f}" if costs else ""
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {each} | {cost} |")
    for claim in ablation.claims:
        verdict = judge_claim(claim, scores)
        found = "" if verdict.mean is None else f" by {interval((verdict.mean, verdict.low, verdict.high))}"
        published = f"; published: {claim.published}" if claim.published else ""
        lines += [
            "",
            f"**{verdict.word}**: {claim.says} ({claim.source}{published}). {claim.metric}: {claim.above} above"
            f" {claim.below}{found}, {verdict.seeds} paired seeds.",
        ]
    if len(ablation.claims) > 1:
        lines += [
            "",
            f"Each interval is of its claim alone: of {len(ablation.claims)} claims one may come out by chance.",
        ]
    for outcome in outcomes:
        if outcome.failed:
            lines += ["", f"{outcome.arm}, seed {outcome.seed}, failed: {outcome.failed}"]
    return "\n".join(lines) + "\n"


def digits(value: float | None) -> str:
    """Two digits, three where a score lies between 0 and 1 alone; n/a for none."""
    return "n/a" if value is None else f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}"


def interval(found: Sequence[float]) -> str:
    """``.123 [.100, .146]``, or the value alone where there is no interval."""
    mean, low, high = found
    return digits(mean) if low == high == mean else f"{digits(mean)} [{digits(low)}, {digits(high)}]"


def cell(values: Mapping[int, float], seeds: int) -> str:
    """Of the table: mean and interval over the seeds that have a value, and how many where it is not all."""
    found = summary(values)
    return (
        "n/a" if found is None else interval(found) + ("" if len(values) == seeds else f" ({len(values)} of {seeds})")
    )


def plot(ablation: Ablation, outcomes: Sequence[Outcome], path: Path) -> None:
    """A row of the first column for each arm: every seed a dot, the mean and its interval a bar."""
    from matplotlib.figure import Figure  # not pyplot: no window system is asked for

    scores, tag = scores_of(outcomes), ablation.columns[0]
    figure = Figure(figsize=(7, 1.2 + 0.36 * len(ablation.arms)), layout="constrained")
    axes = figure.add_subplot()
    for row, arm in enumerate(ablation.arms):
        values = of_tag(scores, arm, tag)
        axes.plot(list(values.values()), [row] * len(values), "o", color="C0", alpha=0.5, markersize=5)
        if found := summary(values):
            mean, low, high = found
            axes.errorbar(mean, row, xerr=[[mean - low], [high - mean]], fmt="|", color="black", capsize=3)
    axes.set_yticks(range(len(ablation.arms)), list(ablation.arms))
    axes.invert_yaxis()
    axes.set_xlabel(f"{tag}: seeds, mean, 95 % t-interval")
    axes.set_title(ablation.question, fontsize=10, wrap=True)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def write(ablation: Ablation, seeds: Sequence[int], outcomes: Sequence[Outcome], date: str, out: Path) -> str:
    """Write all three files; gives the table."""
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(ablation, outcomes, date)
    (out / RESULTS).write_text(json.dumps(results(ablation, seeds, outcomes, date), indent=1) + "\n", encoding="utf-8")
    (out / TABLE).write_text(table, encoding="utf-8")
    plot(ablation, outcomes, out / PLOT)
    return table
