"""What an ablation file says: a base configuration, arms as overrides of it, what is measured, and what is claimed."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.index import INDEX_NAME, read_index
from lit_wm.ablation.measures import MEASURES
from lit_wm.errors import UserError

Overrides = dict[str, Any]  # dotted keys of a configuration -> values
ARM = re.compile(r"[a-z0-9][a-z0-9_.-]*")
KEYS = ("question", "base", "set", "first", "arms", "budgets", "measures", "columns", "claims")
CLAIM_KEYS = ("says", "source", "published", "metric", "above", "below")
NAMED = re.compile(rf"\{{({ARM.pattern})\}}")  # in an override, the checkpoint of the preparatory run of that name
ROOT = "data.init_args.root"  # the key of the recording that a run is trained on


@dataclass(frozen=True)
class Claim:
    """That one arm scores above another.

    Args:
        says: in words.
        source: paper, section or table.
        published: the number there; empty where it gives none.
        metric: tag of the number that decides.
        above: the arm that is claimed to score more.
        below: the arm that is claimed to score less.
    """

    says: str
    source: str
    published: str
    metric: str
    above: str
    below: str


@dataclass(frozen=True)
class Ablation:
    """One ablation at one budget.

    Args:
        name: of the file.
        budget: which of its budgets.
        question: what it answers.
        base: the configuration that all arms override.
        first: preparatory runs, name -> overrides. Each is trained once for each seed, before the arms, which take its checkpoint
            as ``{name}``; empty where nothing has to go before.
        arms: name -> overrides, those of ``set`` and of the budget in it.
        measures: parts of the scorecard that each run is judged by.
        columns: tags that the table shows, the first also the plot.
        claims: what is claimed.
    """

    name: str
    budget: str
    question: str
    base: Path
    first: dict[str, Overrides]
    arms: dict[str, Overrides]
    measures: tuple[str, ...]
    columns: tuple[str, ...]
    claims: tuple[Claim, ...]

    def run_name(self, overrides: Overrides, seed: int) -> str:
        """Folder of a run with these overrides.

        It ends in a hash of all that decides the training, the recorded data included, so that what an edited file asks for is
        never mistaken for what is already there, and runs of several ablations that are the same are trained once.

        Raises:
            ExperienceError: the recording is there, but cannot be read.
        """
        resolved = {
            key: fill(value, lambda name: self.run_name(self.first[name], seed)) for key, value in overrides.items()
        }
        base = yaml.safe_load(self.base.read_text())
        said = json.dumps([base, resolved, data_hash(base, overrides)], sort_keys=True, default=str)
        digest = hashlib.sha256(said.encode()).hexdigest()[:10]
        return f"{self.base.resolve().parent.name}-{self.base.stem}-{digest}-seed{seed}"


def data_hash(base: Mapping[str, Any], overrides: Overrides) -> str | None:
    """Of the recording that a run is trained on; None where it is not there (yet), or where experience is made as it learns."""
    root = overrides.get(ROOT) or ((base.get("data") or {}).get("init_args") or {}).get("root")
    return read_index(root).data_hash if root and (Path(root) / INDEX_NAME).is_file() else None


def fill(value: Any, of_name: Callable[[str], str]) -> Any:
    """A value with every ``{name}`` in it replaced."""
    return NAMED.sub(lambda found: of_name(found[1]), value) if isinstance(value, str) else value


def needed_runs(overrides: Overrides) -> list[str]:
    """Names of the preparatory runs that overrides take checkpoints of."""
    return [name for value in overrides.values() if isinstance(value, str) for name in NAMED.findall(value)]


def read_ablation(path: Path, budget: str | None, find_base: Callable[[str], str]) -> Ablation:
    """Read and check a file.

    Args:
        path: of the file.
        budget: one of its ``budgets``; None for the first.
        find_base: gives the path of a configuration by its name.

    Raises:
        UserError: a key that nothing reads, an arm that is not there, a budget the file does not have; names file and key.
    """
    said = _mapping(yaml.safe_load(path.read_text()), str(path), "the file")
    _known(said, KEYS, str(path))
    for key in ("question", "base", "arms", "budgets", "measures", "columns"):
        if key not in said:
            raise UserError(f"{path} lacks the key '{key}'")
    budgets = _mapping(said["budgets"], str(path), "budgets")
    budget = budget or next(iter(budgets))
    if budget not in budgets:
        raise UserError(f"{path} has no budget '{budget}': {', '.join(budgets)}")
    shared = _overrides(said.get("set"), path, "set") | _overrides(budgets[budget], path, f"budgets.{budget}")
    arms = {
        str(name): shared | _overrides(given, path, f"arms.{name}")
        for name, given in _mapping(said["arms"], str(path), "arms").items()
    }
    for name in arms:
        if not ARM.fullmatch(name):
            raise UserError(f"{path}: the arm '{name}' may hold small letters, digits, '.', '_' and '-' only")
    before = _mapping(said["first"], str(path), "first") if said.get("first") else {}
    first = {str(name): _overrides(given, path, f"first.{name}") for name, given in before.items()}
    _check_named(first, arms, path)
    measures = _words(said["measures"], path, "measures")
    for measure in measures:
        if measure not in MEASURES:
            raise UserError(f"{path}: measures '{measure}' is not one of {', '.join(MEASURES)}")
    claims = said.get("claims") or []
    if not isinstance(claims, list):
        raise UserError(f"{path}: claims must be a list")
    claims = tuple(_claim(one, arms, path, i) for i, one in enumerate(claims))
    return Ablation(
        name=path.stem,
        budget=budget,
        question=str(said["question"]),
        base=Path(find_base(str(said["base"]))),
        first=first,
        arms=arms,
        measures=measures,
        columns=_words(said["columns"], path, "columns"),
        claims=claims,
    )


def _claim(given: Any, arms: Mapping[str, Any], path: Path, place: int) -> Claim:
    where = f"{path}: claims.{place}"
    given = _mapping(given, str(path), f"claims.{place}")
    _known(given, CLAIM_KEYS, where)
    if missing := [key for key in CLAIM_KEYS if key not in given and key != "published"]:
        raise UserError(f"{where} lacks the key '{missing[0]}'")
    for side in ("above", "below"):
        if str(given[side]) not in arms:
            raise UserError(f"{where}.{side} '{given[side]}' is not one of the arms {', '.join(arms)}")
    if given["above"] == given["below"]:
        raise UserError(f"{where} compares '{given['above']}' with itself")
    return Claim(**{key: str(given.get(key, "")) for key in CLAIM_KEYS})


def _check_named(first: Mapping[str, Overrides], arms: Mapping[str, Overrides], path: Path) -> None:
    """Every ``{name}`` stands in a word of an arm, and is a preparatory run."""
    for where, runs in (("first", first), ("arms", arms)):
        for name, given in runs.items():
            for key, value in given.items():
                wanted = NAMED.findall(json.dumps(value, default=str))
                if wanted and (where == "first" or not isinstance(value, str)):
                    raise UserError(
                        f"{path}: {where}.{name}.{key} takes {{{wanted[0]}}}, but only arms take a checkpoint, as a word"
                    )
                for one in wanted:
                    if one not in first:
                        raise UserError(
                            f"{path}: arms.{name} takes {{{one}}}, which is not one of first: {', '.join(first)}"
                        )


def _mapping(given: Any, path: str, what: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not given:
        raise UserError(f"{path}: {what} must be a mapping with at least one key")
    return given


def _overrides(given: Any, path: Path, what: str) -> Overrides:
    if given is not None and not isinstance(given, dict):
        raise UserError(f"{path}: {what} must be a mapping of dotted keys")
    return {str(key): value for key, value in (given or {}).items()}


def _words(given: Any, path: Path, what: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given:
        raise UserError(f"{path}: {what} must be a list")
    return tuple(str(word) for word in given)


def _known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            hint = f"; did you mean '{near[0]}'?" if near else f": {', '.join(known)}"
            raise UserError(f"{where}: nothing reads the key '{key}'{hint}")
