"""Progress on standard error: a bar with rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from coe_native.evaluation.humaneval import Attempt
    from coe_native.profiling.run import Progress
    from coe_native.recipes.specialise import Watchers


class _Bar:
    """A progress bar on standard error; hidden unless that is a terminal."""

    def __init__(self, description: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(description, total=None, rate="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def restart(self, description: str) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=None, rate="")

    def n_bytes(self, done: int, total: int) -> None:
        self._update(done, total, 1e6, "MB/s")

    def tokens(self, progress: Progress) -> None:
        self._update(progress.tokens, progress.total, 1, "tokens/s")

    def attempts(self, attempts: Mapping[str, Attempt], total: int) -> None:
        passed = sum(bool(attempt.passed) for attempt in attempts.values())
        judged = any(attempt.passed is not None for attempt in attempts.values())
        rate = f"{passed} passed" if judged else ""
        self._progress.update(self._task, completed=len(attempts), total=total, rate=rate)

    def _update(self, done: int, total: int, scale: float, unit: str) -> None:
        speed = self._progress.tasks[0].speed
        rate = "" if speed is None else f"{speed / scale:,.0f} {unit}"
        self._progress.update(self._task, completed=done, total=total, rate=rate)


@contextlib.contextmanager
def byte_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for work on files.

    Yields:
        A function to call with the bytes done and the bytes in all.
    """
    with _Bar(description) as bar:
        yield bar.n_bytes


@contextlib.contextmanager
def token_progress(description: str) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar for work on tokens.

    Yields:
        A function to call with the progress.
    """
    with _Bar(description) as bar:
        yield bar.tokens


@contextlib.contextmanager
def problem_progress(total: int) -> Iterator[Callable[[Mapping[str, Attempt]], None]]:
    """Show a progress bar for programming problems.

    Args:
        total: Number of problems.

    Yields:
        A function to call with the attempts so far.
    """
    with _Bar("solving") as bar:
        yield lambda attempts: bar.attempts(attempts, total)


@contextlib.contextmanager
def step_progress() -> Iterator[Watchers]:
    """Show a progress bar that restarts with each step of making a specialist.

    Yields:
        The functions to call in those steps.
    """
    from coe_native.recipes.specialise import Watchers

    with _Bar("loading") as bar:
        yield Watchers(bar.restart, bar.tokens, bar.n_bytes)
