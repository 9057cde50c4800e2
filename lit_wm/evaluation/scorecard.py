"""Several runs, one yardstick: what goes into ``scorecard.json``."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_wm.evaluation.judge import RunScores
from lit_wm.evaluation.settings import Settings
from lit_wm.evaluation.statistics import Number, paired_t, t_interval

FORMAT = 1


@dataclass(frozen=True)
class Scorecard:
    """Everything that was measured.

    Args:
        data: what the runs were judged on: hash, environment, resolution, clips and episodes of each split.
        settings: the yardstick.
        runs: one entry per run, in the order given.
    """

    data: dict[str, Any]
    settings: Settings
    runs: list[RunScores]

    @property
    def groups(self) -> dict[str, list[RunScores]]:
        """Runs of one recipe, after equally many updates, that differ by their seed, where there are two or more: title -> runs.

        A run that was stopped early is no seed of the finished ones: it stays out of their mean.
        """
        recipes: dict[tuple[str, int | None], list[RunScores]] = {}
        for run in self.runs:
            if run.facts.get("recipe") is not None:
                recipes.setdefault((run.facts["recipe"], run.facts.get("updates")), []).append(run)
        return {
            f"{group[0].name} and {len(group) - 1} more seed{'s' * (len(group) > 2)}": group
            for group in recipes.values()
            if len({run.facts.get("seed") for run in group}) == len(group) > 1
        }

    def over_seeds(self) -> dict[str, dict[str, Number]]:
        """Group -> tag -> mean with its t-interval over seeds; tags that a seed leaves undefined are left out."""
        found: dict[str, dict[str, Number]] = {}
        for title, group in self.groups.items():
            found[title] = {}
            for tag in group[0].numbers:
                values = [run.numbers[tag].value if tag in run.numbers else None for run in group]
                if None not in values:
                    mean, low, high = t_interval(values)
                    found[title][tag] = Number(mean, len(values), low, high)
        return found

    def differences(self, tag: str) -> dict[str, Number]:
        """``A less B`` -> mean difference of a tag over the seeds that both groups have, with its paired t-interval."""
        found = {}
        for (name_a, a), (name_b, b) in itertools.combinations(self.groups.items(), 2):
            of_a, of_b = ({run.facts["seed"]: run.numbers[tag].value for run in group} for group in (a, b))
            seeds = [s for s in of_a if s in of_b and of_a[s] is not None and of_b[s] is not None]
            if len(seeds) > 1:
                mean, low, high = paired_t([of_a[s] for s in seeds], [of_b[s] for s in seeds])
                found[f"{name_a}, less {name_b}"] = Number(mean, len(seeds), low, high)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "format": FORMAT,
            "data": self.data,
            "settings": asdict(self.settings),
            "runs": [
                {
                    "name": run.name,
                    "labels": list(run.labels),
                    "steering": run.steering,
                    "facts": run.facts,
                    "numbers": {tag: number.to_dict() for tag, number in run.numbers.items()},
                }
                for run in self.runs
            ],
            "over_seeds": {
                title: {tag: number.to_dict() for tag, number in numbers.items()}
                for title, numbers in self.over_seeds().items()
            },
        }

    def write_json(self, path: Path) -> None:
        """Write ``scorecard.json``; a number that is not finite would be a bug, and is refused."""
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
