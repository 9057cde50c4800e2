"""Trains what is missing: each arm of each seed by ``lit-wm fit`` in a process of its own, a few at a time.

Everything is on disk: a run that was killed goes on from its checkpoint, one that is judged is not trained again, and one that
failed, in training or under judgement, leaves the others alone and is tried again next time. A run that another process trains,
even one left over from an ablation that was killed, is not touched: a lock on its folder lives as long as the training.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_wm.ablation.definition import Ablation, Overrides, fill, needed_runs
from lit_wm.checkpoint_file import CHECKPOINT
from lit_wm.errors import ExperienceError, UserError

SCORES, LOG, LOCK = "scores.json", "fit.log", ".training"
Judge = Callable[
    [Path, Sequence[str]], dict[str, dict[str, Any]]
]  # run folder, measures -> tag -> number as plain types


@dataclass(frozen=True)
class Outcome:
    """Of one run.

    Args:
        arm: its name, or that of the preparatory run.
        seed: of the training.
        folder: where it lies.
        numbers: tag -> value or None (undefined).
        cost: ``cpu_s`` of the training, in this and earlier tries; empty where that is not known.
        failed: what went wrong; empty where nothing did.
    """

    arm: str
    seed: int
    folder: Path
    numbers: dict[str, float | None]
    cost: dict[str, float]
    failed: str = ""


class Runner:
    """Trains and judges the runs of an ablation.

    Args:
        ablation: what to run.
        runs: folder of all runs.
        judge: what scores a finished run.
        threads: of each training.
        said: told what happens, a line at a time.
    """

    def __init__(
        self,
        ablation: Ablation,
        runs: Path,
        judge: Judge,
        threads: int,
        said: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.ablation, self.runs, self.judge, self.threads, self.said = ablation, runs, judge, threads, said
        self.judging = threading.Lock()  # torch already uses several threads, and pictures are large
        self.one_at_a_time: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # arms may share a run
        self.children: set[subprocess.Popen[bytes]] = set()

    def run(self, seeds: Sequence[int], jobs: int) -> list[Outcome]:
        """All arms of all seeds, ``jobs`` at a time; the preparatory runs before them.

        Raises:
            UserError: a column or a claim's metric is no number that the measures give. Trainings that are going on are
                stopped; they go on next time.
        """
        firsts = [(name, seed) for seed in seeds for name in self.ablation.first]
        arms = [(arm, seed) for seed in seeds for arm in self.ablation.arms]
        with ThreadPoolExecutor(jobs) as pool:
            try:
                before = {(o.arm, o.seed): o.failed for o in pool.map(lambda one: self.prepare(*one), firsts)}
                return list(pool.map(lambda one: self.one(*one, before), arms))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(self.children):
                    child.send_signal(signal.SIGINT)
                raise

    def prepare(self, name: str, seed: int) -> Outcome:
        """Train a preparatory run, unless it is."""
        overrides = self.ablation.first[name]
        folder = self.folder(overrides, seed)
        with self.one_at_a_time[folder]:
            try:
                failed, cpu_s = self.trained(f"{name} seed {seed}", overrides, seed, folder)
            except UserError as error:
                return Outcome(name, seed, folder, {}, {}, str(error))
        return Outcome(name, seed, folder, {}, {"cpu_s": cpu_s}, failed)

    def one(self, arm: str, seed: int, before: Mapping[tuple[str, int], str]) -> Outcome:
        """Train an arm, unless it is; judge what is not judged.

        Args:
            arm: its name.
            seed: of the training.
            before: (preparatory run, seed) -> what went wrong with it, empty where nothing did.
        """
        overrides, name = self.ablation.arms[arm], f"{arm} seed {seed}"
        folder = self.folder(overrides, seed)
        for needed in needed_runs(overrides):
            if before[needed, seed]:
                return Outcome(arm, seed, folder, {}, {}, f"its preparatory run {needed}: {before[needed, seed]}")
        with self.one_at_a_time[folder]:
            try:
                failed, cpu_s = self.trained(name, overrides, seed, folder)
                if failed:
                    return Outcome(arm, seed, folder, {}, {"cpu_s": cpu_s}, failed)
                numbers = self.judged(name, folder)
            except (UserError, ExperienceError) as error:
                self.said(f"{name}: FAILED, {error}")
                return Outcome(arm, seed, folder, {}, {}, str(error))
        self.check_tags(numbers)
        return Outcome(arm, seed, folder, numbers, {"cpu_s": cpu_s})

    def judged(self, name: str, folder: Path) -> dict[str, float | None]:
        """Tag -> value of a trained run, judged by what it is not judged by yet."""
        kept = read_scores(folder)
        scores = kept.setdefault("scores", {})
        if missing := [part for part in self.ablation.measures if part not in scores]:
            self.said(f"{name}: judging")
            with self.judging:
                scores |= self.judge(folder, missing)
            write_scores(folder, kept)
        return {tag: n.get("value") for part in self.ablation.measures for tag, n in scores[part].items()}

    def check_tags(self, numbers: Mapping[str, float | None]) -> None:
        """Refuse a column or a metric that no measure gives: a misspelt one would be empty for every arm."""
        for tag in (*self.ablation.columns, *(claim.metric for claim in self.ablation.claims)):
            if tag not in numbers:
                near = difflib.get_close_matches(tag, numbers, n=3, cutoff=0.5)
                raise UserError(
                    f"{self.ablation.name}: '{tag}' is no number of {', '.join(self.ablation.measures)};"
                    f" near it: {', '.join(near) or ', '.join(sorted(numbers))}"
                )

    def trained(self, name: str, overrides: Overrides, seed: int, folder: Path) -> tuple[str, float]:
        """Train a run, unless it is: what went wrong (empty: nothing), and the CPU-seconds of this and earlier tries."""
        kept = read_scores(folder)
        if kept.get("trained"):
            return "", kept["cpu_s"]
        self.said(f"{name}: training in {folder}")
        failed, cpu_s = self.train(overrides, seed, folder)
        kept = {"trained": not failed, "cpu_s": kept.get("cpu_s", 0.0) + cpu_s}
        write_scores(folder, kept)
        if failed:
            self.said(f"{name}: FAILED, {failed} ({folder / LOG})")
        return failed, kept["cpu_s"]

    def folder(self, overrides: Overrides, seed: int) -> Path:
        """Of a run."""
        return self.runs / self.ablation.run_name(overrides, seed)

    def command(self, overrides: Overrides, seed: int) -> list[str]:
        """The words that train a run, beginning with ``fit``."""
        words = ["fit", "--config", str(self.ablation.base), "--runs", str(self.runs)]
        words += ["--name", self.ablation.run_name(overrides, seed), "--ckpt_path", "last"]
        words += ["--seed_everything", str(seed), "--data.init_args.seed", str(seed)]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        return words + list(
            options(overrides, lambda name: str(self.folder(self.ablation.first[name], seed) / CHECKPOINT))
        )

    def train(self, overrides: Overrides, seed: int, folder: Path) -> tuple[str, float]:
        """What went wrong (empty: nothing) and the CPU-seconds it took.

        Raises:
            UserError: another process is training it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        threads = str(self.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with (folder / LOG).open("ab") as log, (folder / LOCK).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child holds it too, and beyond our own end
            except BlockingIOError as error:
                raise UserError(f"another process trains {folder}: wait for that, or end it") from error
            child = subprocess.Popen(
                [sys.executable, "-m", "lit_wm", *self.command(overrides, seed)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()],
            )
            self.children.add(child)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            self.children.discard(child)
        if child.returncode == 0:
            return "", cpu_seconds(used)
        lines = (folder / LOG).read_text(errors="replace").strip().splitlines() or ["no word was said"]
        return f"exit code {child.returncode}: {lines[-1]}", cpu_seconds(used)


def options(overrides: Overrides, checkpoint: Callable[[str], str]) -> Iterator[str]:
    """Dotted keys as words of a command line; every ``{name}`` in a value becomes that run's checkpoint."""
    for key, value in overrides.items():
        yield f"--{key}"
        yield fill(value, checkpoint) if isinstance(value, str) else json.dumps(value)


def cpu_seconds(used: resource.struct_rusage) -> float:
    """User and system time."""
    return used.ru_utime + used.ru_stime


def read_scores(folder: Path) -> dict[str, Any]:
    """What is known of a run: ``trained``, ``cpu_s`` and, by measure, ``scores``; nothing for one that is not there.

    Raises:
        UserError: the file is not what was written.
    """
    file = folder / SCORES
    try:
        return json.loads(file.read_text()) if file.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{file} cannot be read ({error}): delete it, and the run is judged again") from error


def write_scores(folder: Path, kept: Mapping[str, Any]) -> None:
    """Write it at once or not at all."""
    new = folder / f"{SCORES}.new"
    new.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    new.replace(folder / SCORES)
