"""A bar on the error stream while a recording is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Counts(ProgressColumn):
    """How much is done, of how much, and how fast."""

    def __init__(self, unit: str, digits: int) -> None:
        super().__init__()
        self.unit, self.digits = unit, digits

    def render(self, task: Task) -> Text:
        numbers = task.completed, task.total or 0, task.finished_speed or task.speed or 0
        done, total, speed = (f"{number:,.{self.digits}f}" for number in numbers)
        return Text(f"{done}/{total} {self.unit}, {speed}/s")


class Bar:
    """What :func:`progress_bar` hands out."""

    def __init__(self, progress: Progress, what: str, total: float) -> None:
        self._progress, self._task = progress, progress.add_task(what, total=total)

    def advance(self, done: float) -> None:
        """So much more is done."""
        self._progress.advance(self._task, done)

    def say(self, line: str) -> None:
        """Print a line on the error stream, above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(what: str, unit: str, total: float, wanted: bool, digits: int = 0) -> Iterator[Bar]:
    """A bar with counts and speed, silent if the error stream is no terminal.

    Args:
        what: is being done.
        unit: of ``total``.
        total: when it is finished.
        wanted: False: no bar in any case.
        digits: decimals of the counts.
    """
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), Counts(unit, digits), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not wanted or not console.is_terminal) as progress:
        yield Bar(progress, what, total)
