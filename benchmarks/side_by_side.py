"""Two ways to do a thing, taken in turns, and the ratio of each pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

Measure = Callable[[], float]
"""Does its work and returns what it took, or how fast it was."""


class Target(NamedTuple):
    """What a ratio must be: at least so much where figures are speeds, at most where they are times."""

    bound: float
    at_least: bool

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` are called by turns. Without a `target` the ratio is only reported; without `theirs` the
    target is for the figure itself."""

    what: str
    unit: str
    ours: Measure
    against: str = ""
    theirs: Measure | None = None
    target: Target | None = None


@dataclass(frozen=True)
class Result:
    comparison: Comparison
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        """Run by run; our own figures where there is nothing to compare with."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)] if self.theirs else self.ours

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        target = self.comparison.target
        return "" if target is None else f"{target}: {'met' if target.holds(self.ratio) else 'NOT met'}"

    def cells(self) -> tuple[str, ...]:
        unit = self.comparison.unit
        shown = [f"{statistics.median(self.ours):.4g} {unit}"]
        shown.append(f"{statistics.median(self.theirs):.4g} {unit}" if self.theirs else "")
        low, high = min(self.ratios), max(self.ratios)
        ratio = f"{self.ratio:.3f} ({low:.3f} to {high:.3f})" if self.theirs else ""
        return (self.comparison.what, self.comparison.against, *shown, ratio, self.verdict)


def run(comparison: Comparison, n_runs: int) -> Result:
    ours, theirs = [], []
    for _ in range(n_runs):
        ours.append(comparison.ours())
        if comparison.theirs is not None:
            theirs.append(comparison.theirs())
    return Result(comparison, ours, theirs)


def show(results: Iterable[Result], title: str) -> None:
    """A table of medians on standard output."""
    table = Table(title=title, title_justify="left", pad_edge=False, box=None)
    for name in ("what", "against", "ours", "theirs", "ratio (least to most)", "target"):
        table.add_column(name, justify="left" if name in ("what", "against", "target") else "right", no_wrap=True)
    for result in results:
        table.add_row(*result.cells())
    Console(width=170).print(table)


def seconds(step: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Measure:
    """Times a step, after preparations that are not timed."""

    def measure() -> float:
        prepare()
        started = time.monotonic()
        step()
        return time.monotonic() - started

    return measure
