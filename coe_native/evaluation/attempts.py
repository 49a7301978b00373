"""Answers of a model and their results, in a file that a run can be continued from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from coe_native.errors import InputError
from coe_native.evaluation.problems import in_fence, read_lines
from coe_native.evaluation.sandbox import Outcome
from coe_native.evaluation.tasks import Task, Writer
from coe_native.files.atomic import check_target, replacing
from coe_native.files.regular import read_regular

_MOST_RESULTS = 1 << 28
"""Most bytes of a file of attempts; an answer of 16,384 tokens has some 64 KB."""

_SHARE = 0.02
"""Share of the time that may go into writing the file, which is written as a whole each time."""


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model's answer to a task, and its result.

    Attributes:
        task_id: The task.
        completion: The answer.
        tokens: Number of its tokens; None: unknown.
        ended: Why it ended (`Generation.ended`); empty: unknown.
        run: Digest of the model, options and tasks (`Writer.run`); empty for ready-made answers.
        sample: Number of the answer, where a task has several.
        category: The task's category, such as its difficulty.
        passed: Whether the program passed; None until it has been run.
        result: ``passed``, or the reason why it did not.
        isolated: Whether it ran isolated.
        looping: Whether the answer ends in a loop; None until that has been looked for.
        period: Characters that the loop repeats.
        is_program: Whether the answer is a program as it stands, and not a text with a program in it.
    """

    task_id: str
    completion: str
    tokens: int | None = None
    ended: str = ""
    run: str = ""
    sample: int = 0
    category: str = ""
    passed: bool | None = None
    result: str | None = None
    isolated: bool | None = None
    looping: bool | None = None
    period: int | None = None
    is_program: bool = False


class Results:
    """Attempts, and the ``.jsonl`` file that they are kept in. Use it in a ``with`` block.

    The file is written as a whole, at once and then as often as that takes little time, and when the block ends.

    Args:
        path: The file; None: attempts are not kept.
        run: The digest of the run (`Writer.run`).
        resume: Keep the attempts in the file.
        force: Replace the file, unless `resume` is set.
        inputs: Files that must not be replaced.

    Attributes:
        path: The file.
        run: The digest.

    Raises:
        InputError: The file exists, and neither `resume` nor `force` is set; or it belongs to another run.
    """

    def __init__(
        self,
        path: Path | None,
        run: str,
        *,
        resume: bool = False,
        force: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        self.path = path
        self.run = run
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._is_saved = True
        self._next_save = 0.0
        if path is None:
            return
        check_target(path, force=True, inputs=tuple(inputs))
        if path.exists() and not resume and not force:
            raise InputError(f"{path}: exists; continue it with --resume, or replace it with --force")
        if resume and path.exists():
            for attempt in read_attempts(path):
                if attempt.run != run:
                    raise InputError(
                        f"{path}: belongs to another model, problems or options; use the same, or start over with "
                        "--force and without --resume"
                    )
                self._attempts[attempt.task_id, attempt.sample] = attempt

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.save()

    def __len__(self) -> int:
        return len(self._attempts)

    def add(self, attempt: Attempt) -> None:
        """Add an attempt, or replace the same one."""
        self._attempts[attempt.task_id, attempt.sample] = attempt
        self._is_saved = False
        if time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Write the file, unless it has all attempts."""
        if self._is_saved or self.path is None:
            return
        started = time.monotonic()
        with replacing(self.path) as file:
            file.writelines(msgspec.json.encode(each) + b"\n" for each in self._attempts.values())
        self._is_saved = True
        self._next_save = time.monotonic() + (time.monotonic() - started) / _SHARE

    def of(self, task_id: str) -> list[Attempt]:
        """Return the attempts at a task."""
        return [attempt for attempt in self._attempts.values() if attempt.task_id == task_id]

    def has(self, task_id: str, sample: int) -> bool:
        """Return whether there is an attempt."""
        return (task_id, sample) in self._attempts

    def all(self) -> list[Attempt]:
        """Return all attempts."""
        return list(self._attempts.values())

    def all_of(self, task_ids: Iterable[str]) -> list[Attempt]:
        """Return the attempts at several tasks, in the order of the tasks."""
        wanted = {task_id: number for number, task_id in enumerate(task_ids)}
        found = [attempt for attempt in self._attempts.values() if attempt.task_id in wanted]
        return sorted(found, key=lambda attempt: (wanted[attempt.task_id], attempt.sample))


def read_attempts(path: Path) -> list[Attempt]:
    """Read a file that `Results` wrote.

    Raises:
        InputError: The file cannot be read, or is not such a file.
    """
    try:
        return list(read_lines(path, read_regular(path, _MOST_RESULTS), Attempt))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(
            f"{error}; it is not a file of answers that humaneval, livecodebench or loops wrote"
        ) from error


def write_answers(
    tasks: Sequence[Task],
    writer: Writer,
    results: Results,
    progress: Callable[[int, int], None] = lambda n_answers, n_tokens: None,
) -> None:
    """Let a model answer the tasks that have no answer yet.

    Args:
        tasks: The tasks.
        writer: Writes the answers.
        results: Where they are kept.
        progress: Called with the answers that there are, and the tokens written so far.

    Raises:
        InputError: A task does not fit into the context, or the model has no chat template.
    """
    wanted = [(task, sample) for task in tasks for sample in range(writer.samples)]
    missing = [(task, sample) for task, sample in wanted if not results.has(task.task_id, sample)]
    n_done = len(wanted) - len(missing)

    def tell(n_tokens: int) -> None:
        progress(n_done, n_tokens)

    for task, sample, written in writer.write(missing, tell):
        n_done += 1
        results.add(
            Attempt(
                task_id=task.task_id,
                completion=written.text,
                tokens=written.n_tokens,
                ended=written.ended,
                run=results.run,
                sample=sample,
                category=task.category,
            )
        )


def judge_answers(
    judges: Iterable[tuple[str, Callable[[str], Outcome]]],
    results: Results,
    progress: Callable[[int, int], None] = lambda n_judged, n_passed: None,
) -> None:
    """Judge the attempts that have no result yet.

    Args:
        judges: For each task, its name and what judges an answer.
        results: The attempts.
        progress: Called with the attempts that have been judged, and those that passed.
    """
    n_judged = n_passed = 0
    for task_id, judge in judges:
        for attempt in results.of(task_id):
            passed = attempt.passed
            if passed is None:
                found = judge(in_fence(attempt.completion) if attempt.is_program else attempt.completion)
                passed = found.passed
                results.add(
                    msgspec.structs.replace(attempt, passed=passed, result=found.result, isolated=found.isolated)
                )
            n_judged += 1
            n_passed += passed
            progress(n_judged, n_passed)


def by_category(attempts: Iterable[Attempt]) -> Iterator[tuple[str, list[Attempt]]]:
    """Yield the attempts of each category: easy, medium, hard, then others by their names."""
    order = {name: number for number, name in enumerate(("easy", "medium", "hard"))}
    found: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if attempt.category:
            found.setdefault(attempt.category, []).append(attempt)
    yield from sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
