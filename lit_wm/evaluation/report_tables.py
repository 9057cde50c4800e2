"""Cells and tables of ``scorecard.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lit_wm.evaluation.scorecard import Scorecard
from lit_wm.evaluation.statistics import Number, not_applicable

Format = Callable[[float], str]


def fixed(digits: int) -> Format:
    """A number with so many decimals, and without a minus sign before a zero."""
    return lambda value: f"{value:.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def whole(value: float) -> str:
    """A number in thousands."""
    return f"{value:,.0f}"


class Notes:
    """Reasons of n/a cells, numbered as they come."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cell(self, number: Number | None, digits: Format, interval: bool = True) -> str:
        """``0.71 [0.66, 0.75]``, or ``n/a (2)`` with the reason kept for below the table."""
        number = number or not_applicable("not measured")
        if number.value is None:
            if number.reason not in self.reasons:
                self.reasons.append(number.reason)
            return f"n/a ({self.reasons.index(number.reason) + 1})"
        if number.low is None or number.high is None or not interval:
            return digits(number.value)
        return f"{digits(number.value)} [{digits(number.low)}, {digits(number.high)}]"

    def lines(self) -> list[str]:
        """The reasons, as a paragraph."""
        return ["", *(f"({i}) n/a: {reason}.  " for i, reason in enumerate(self.reasons, 1))] if self.reasons else []


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def plain_table(card: Scorecard, columns: Sequence[tuple[str, str, Format]]) -> list[str]:
    """Runs down, measures across."""
    notes = Notes()
    rows = [[run.name, *(notes.cell(run.numbers.get(tag), digits) for _, tag, digits in columns)] for run in card.runs]
    return [*table(["run", *(title for title, *_ in columns)], rows), *notes.lines()]
