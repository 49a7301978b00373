"""Progress on standard error: a bar with rate and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
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

    def answers(self, n_answers: int, n_tokens: int, total: int) -> None:
        seconds = self._progress.tasks[0].elapsed
        rate = f"{n_tokens / seconds:,.0f} tokens/s" if seconds else ""
        self._progress.update(self._task, completed=n_answers, total=total, rate=rate)

    def judged(self, n_judged: int, n_passed: int, total: int) -> None:
        self._progress.update(self._task, completed=n_judged, total=total, rate=f"{n_passed} passed")

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
def answer_progress(description: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for answers that a model writes.

    Args:
        description: What is done.
        total: Number of answers.

    Yields:
        A function to call with the finished answers, and the tokens written so far.
    """
    with _Bar(description) as bar:
        yield lambda n_answers, n_tokens: bar.answers(n_answers, n_tokens, total)


@contextlib.contextmanager
def problem_progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for programs that are judged.

    Args:
        total: Number of programs.

    Yields:
        A function to call with the judged programs, and those that passed.
    """
    with _Bar("judging") as bar:
        yield lambda n_judged, n_passed: bar.judged(n_judged, n_passed, total)


@contextlib.contextmanager
def step_progress() -> Iterator[Watchers]:
    """Show a progress bar that restarts with each step of making a specialist.

    Yields:
        The functions to call in those steps.
    """
    from coe_native.recipes.specialise import Watchers

    with _Bar("loading") as bar:
        yield Watchers(bar.restart, bar.tokens, bar.n_bytes)
