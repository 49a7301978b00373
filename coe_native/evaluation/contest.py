"""LiveCodeBench: problems of programming contests, and how its grader compares outputs (Jain et al., 2024).

A problem has tests with an input and the output that is expected: a whole program reads standard input and writes
standard output, or a method is called with arguments.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import io
import json
import pickletools
import re
import textwrap
import zlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.documents import Message
from coe_native.corpus.readers.records import Record
from coe_native.errors import InputError, printable
from coe_native.evaluation.bubblewrap import Limits
from coe_native.evaluation.problems import fenced, problem_records
from coe_native.evaluation.sandbox import Outcome, Sandbox
from coe_native.evaluation.tasks import Task
from coe_native.llama.thinking import after_thinking

LIMITS = Limits(memory=4 << 30)
"""Limits of a program: as many bytes of memory as the official grader allows."""

SECONDS = 6.0
"""Time limit of a test, as the official grader sets it."""

RAW_STOPS = ("\n```", '\n"""')
"""Where a program ends that a model without a chat template completes."""

_MOST_TESTS = 1 << 29
"""Most bytes of a problem's private tests, decompressed."""

_BYTES_OF_CHARACTER = 12
"""Most bytes of a character in JSON: two escapes of a surrogate pair."""

_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics",
    "itertools", "functools", "operator", "io", "sys", "json",
)  # fmt: skip
"""Modules that the official grader imports before a program, first with all their names and then by name."""

PRELUDE = "\n".join(
    (
        *(f"from {name} import *" for name in (*_MODULES, "builtins", "typing")),
        *(f"import {name}" for name in _MODULES),
        "sys.setrecursionlimit(50000)",
    )
)


@dataclass(frozen=True)
class ContestTest:
    """One test.

    Attributes:
        input: Standard input, or one JSON value for each argument, line by line.
        output: The standard output that is expected, or the JSON value that the method must return.
        method: The method to call; empty: the whole program runs.
    """

    input: str
    output: str
    method: str = ""

    @property
    def most_output(self) -> int:
        """Return the most bytes of output that are read: much more than a right answer has."""
        return _BYTES_OF_CHARACTER * len(self.output) + (1 << 14)

    def task(self) -> dict[str, Any]:
        """Return what the runner is told."""
        told: dict[str, Any] = {"input": self.input, "most_output": self.most_output}
        if self.method:
            told["name"] = self.method
            told["input"] = json.dumps([json.loads(line) for line in self.input.split("\n")])
        return told

    def why_wrong(self, result: dict[str, Any]) -> str:
        """Return why a result is wrong; empty if it is right."""
        if result["error"]:
            return str(result["error"])
        output = result["output"]
        if len(output) > self.most_output:
            return "printed too much"
        if self.method:
            return "" if same_value(output, self.output) else "returned another value"
        return "" if same_output(output, self.output) else "printed another output"


def same_output(printed: str, expected: str) -> bool:
    """Return whether an output is the expected one: line by line without the blanks around, or as decimals."""
    lines, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(lines) == len(wanted) and all(
        line == other or _same_decimals(line, other) for line, other in zip(lines, wanted, strict=True)
    )


def _same_decimals(line: str, other: str) -> bool:
    try:
        return [Decimal(part) for part in line.split()] == [Decimal(part) for part in other.split()]
    except InvalidOperation:
        return False


def same_value(returned: str, expected: str) -> bool:
    """Return whether a method's value, as the runner encodes it, equals the expected JSON value.

    As in Python, 1, 1.0 and True are equal. A tuple counts as a list, but not one within another value.
    """
    try:
        value = _decoded(json.loads(returned))
        return bool((list(value) if isinstance(value, tuple) else value) == json.loads(expected))
    except (ValueError, RecursionError, TypeError, KeyError):
        return False


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, dict):
        if "tuple" in value:
            return tuple(map(_decoded, value["tuple"]))
        return {_decoded(key): _decoded(each) for key, each in value["dict"]}
    return value


@dataclass(frozen=True)
class ContestProblem:
    """A problem.

    Attributes:
        task_id: Its name.
        question: Its text.
        starter: The beginning of the code; empty: there is none, and a whole program is asked for.
        difficulty: ``easy``, ``medium`` or ``hard``.
        date: The day of the contest; None: unknown.
        method: The method that the tests call; empty: they run the whole program.
        tests: Its public tests, then the private ones.
    """

    task_id: str
    question: str
    starter: str
    difficulty: str
    date: datetime.date | None
    method: str
    tests: tuple[ContestTest, ...]

    def task(self) -> Task:
        """Return what a model is asked."""
        if self.starter:
            how = f"Complete this code:\n\n```python\n{self.starter.rstrip()}\n```"
        else:
            how = "The program reads standard input and writes standard output."
        asked = (
            f"Solve this problem with a Python program.\n\n{self.question.strip()}\n\n{how}\n\n"
            "Answer with the complete program in one code block."
        )
        return Task(
            self.task_id,
            (Message("user", asked),),
            f'"""\n{self.question.strip()}\n"""\n{self.starter}',
            self.difficulty,
        )

    def program(self, completion: str) -> str:
        """Return the program of an answer: its last fenced block, or all of it.

        Where a method is asked for, that is the last block that defines it, or what continues the starter code.
        """
        answer = after_thinking(completion)
        codes = [textwrap.dedent(block) for block in fenced(answer)] or [answer]
        if not self.method:
            return codes[-1]
        defines = re.compile(rf"\bdef {re.escape(self.method)}\b")
        return next((code for code in reversed(codes) if defines.search(code)), self.starter + codes[-1])

    def judge(self, completion: str, sandbox: Sandbox, seconds: float = SECONDS) -> Outcome:
        """Run an answer for all tests.

        Args:
            completion: The answer.
            sandbox: Where its program runs.
            seconds: Time limit of each test.
        """
        return sandbox.run_tests(self.program(completion), self.tests, prelude=PRELUDE, seconds=seconds)


@dataclass(frozen=True)
class Selection:
    """Which problems of the files are taken.

    Attributes:
        first: The first day of contests; None: any.
        last: The last day; None: any.
        names: Their names; None: any.
    """

    first: datetime.date | None = None
    last: datetime.date | None = None
    names: Container[str] | None = None

    def takes(self, problem: ContestProblem) -> bool:
        """Return whether a problem is taken.

        Raises:
            InputError: It has no date, and the selection needs one.
        """
        if self.names is not None and problem.task_id not in self.names:
            return False
        if self.first is None and self.last is None:
            return True
        if problem.date is None:
            raise InputError(
                f"problem {problem.task_id[:80]} has no contest_date, so --from and --to cannot be used"
            )
        return (self.first or problem.date) <= problem.date <= (self.last or problem.date)


def contest_files(paths: Sequence[Path], release: str | None = None) -> list[Path]:
    """Return the files of problems.

    Args:
        paths: Files, and directories with the published ``test.jsonl``, ``test2.jsonl``, … or Parquet files.
        release: ``release_v4`` for the files up to the fourth, ``v4`` for that one alone, ``v2_v4`` for those
            between; None: all.

    Raises:
        InputError: There are none, or one of the release is missing.
    """
    files: list[Path] = []
    for path in paths:
        files += _files_of(path) if path.is_dir() else [path]
    if release is None:
        return files
    match = re.fullmatch(r"(?:release_v(?P<up_to>\d)|v(?P<first>\d)(?:_v(?P<last>\d))?)", release)
    if match is None:
        raise InputError(f"{release!r} is not a release; write release_v5, v5 or v2_v5")
    first = 1 if match["up_to"] else int(match["first"])
    last = int(match["up_to"] or match["last"] or match["first"])
    by_number = {}
    for path in files:
        numbered = re.match(r"test(\d*)\.", path.name)
        if numbered is not None:
            by_number[int(numbered[1] or 1)] = path
    missing = [number for number in range(first, last + 1) if number not in by_number]
    if missing or first > last:
        names = ", ".join("test.jsonl" if number == 1 else f"test{number}.jsonl" for number in missing)
        raise InputError(f"{paths[0]}: the release {release} needs {names or 'a range that ascends'}")
    return [by_number[number] for number in range(first, last + 1)]


def _files_of(directory: Path) -> list[Path]:
    """Return the files of a directory: those with the published names, if there are any."""
    found = [path for pattern in ("*.jsonl*", "*.parquet") for path in sorted(directory.glob(pattern))]
    if not found:
        raise InputError(f"{directory}: has no .jsonl and no .parquet file")
    return [path for path in found if path.name.startswith("test")] or found


def read_contest(
    files: Sequence[Path], selection: Selection | None = None, *, with_tests: bool = True
) -> Iterator[ContestProblem]:
    """Yield the problems of files in LiveCodeBench's format, one at a time: their tests can be large.

    Args:
        files: The files, ``.jsonl`` or ``.parquet``, also compressed.
        selection: Which problems are taken; None: all.
        with_tests: Whether their tests are read.

    Raises:
        InputError: A file cannot be read, or has an invalid or repeated problem; names the line.
    """
    selection = selection or Selection()
    seen: set[str] = set()
    for path in files:
        for record in problem_records(path, tuple(_Fields.__struct_fields__)):
            with _naming(record):
                fields = msgspec.convert(_given(record), _Fields)
                problem = _problem(fields)
                problem.task()  # which checks its texts
                if problem.task_id in seen:
                    raise InputError(f"has problem {problem.task_id[:80]} again")
                seen.add(problem.task_id)
                if not selection.takes(problem):
                    continue
                if with_tests:
                    problem = replace(problem, tests=tuple(_tests(fields, problem.method)))
            yield problem


class _Fields(msgspec.Struct):
    """The fields of a published problem."""

    question_id: str | int
    question_content: str
    question_title: str = ""
    starter_code: str | None = None
    difficulty: str | None = None
    contest_date: Any = None
    public_test_cases: str | list[Any] | None = None
    private_test_cases: str | list[Any] | None = None
    metadata: str | dict[str, Any] | None = None


class _TestFields(msgspec.Struct):
    """The fields of a published test."""

    input: str
    output: str
    testtype: str = "stdin"


class _Metadata(msgspec.Struct):
    func_name: str | None = None


@contextlib.contextmanager
def _naming(record: Record) -> Iterator[None]:
    """Turn what is wrong with a record's fields into an InputError that names its line."""
    try:
        yield
    except (msgspec.MsgspecError, InputError, UnicodeError, RecursionError) as error:
        raise InputError(f"{record.place}: {printable(str(error), 300)}") from error


def _given(record: Record) -> dict[str, Any]:
    fields = record.fields
    return {name: fields[name] for name in _Fields.__struct_fields__ if fields.get(name) is not None}


def _problem(fields: _Fields) -> ContestProblem:
    """Return a problem without its tests."""
    metadata = fields.metadata or {}
    method = (
        msgspec.json.decode(metadata, type=_Metadata)
        if isinstance(metadata, str)
        else msgspec.convert(metadata, _Metadata)
    ).func_name or ""
    if method and not method.isidentifier():
        raise InputError("its func_name is not a function name")
    title = f"{fields.question_title.strip()}\n\n" if fields.question_title.strip() else ""
    return ContestProblem(
        task_id=str(fields.question_id),
        question=title + fields.question_content,
        starter=fields.starter_code or "",
        difficulty=(fields.difficulty or "").lower(),
        date=_date(fields.contest_date),
        method=method,
        tests=(),
    )


def _date(given: Any) -> datetime.date | None:
    """Return the day of a date, of a time, or of their text in ISO 8601."""
    if given is None or given == "":
        return None
    try:
        return datetime.date.fromisoformat(str(given)[:10])
    except ValueError:
        raise InputError(f"its contest_date {str(given)[:40]!r} is not a date") from None


def _tests(fields: _Fields, method: str) -> Iterator[ContestTest]:
    cases = [*_cases(fields.public_test_cases), *_cases(fields.private_test_cases)]
    if not cases:
        raise InputError("has no tests")
    for case in cases:
        if case.testtype not in ("stdin", "functional"):
            raise InputError(f"has a test of the unknown type {case.testtype[:40]!r}")
        if method:
            try:
                for text in (*case.input.split("\n"), case.output):
                    json.loads(text)
            except (ValueError, RecursionError):
                raise InputError("has a test whose values are not JSON") from None
        elif case.testtype == "functional":
            raise InputError("has tests that call a function, but its metadata names no func_name")
        yield ContestTest(case.input, case.output, method)


def _cases(given: str | list[Any] | None) -> list[_TestFields]:
    """Return tests from JSON, or from base64 of zlib of a pickle of JSON, as private tests are published."""
    if given is None or given == "":
        return []
    if not isinstance(given, str):
        return msgspec.convert(given, list[_TestFields])
    text = given if given.lstrip()[:1] in ("[", "{") else unpacked(given)
    return msgspec.json.decode(text, type=list[_TestFields])


def unpacked(text: str) -> str:
    """Return the text in base64 of zlib of a pickle. The pickle is not executed: it may hold one string, no more.

    Raises:
        InputError: It is something else, or too large.
    """
    try:
        packed = base64.b64decode(text, validate=True)
        inflater = zlib.decompressobj()
        data = inflater.decompress(packed, _MOST_TESTS + 1)
    except (binascii.Error, ValueError, zlib.error):
        raise InputError("has private tests that are neither JSON nor base64 of compressed data") from None
    if len(data) > _MOST_TESTS:
        raise InputError(f"has private tests of more than {_MOST_TESTS >> 20} MB")
    if not inflater.eof:
        raise InputError("has private tests that are cut off")
    if data[:1] in (b"[", b"{"):
        return data.decode("utf-8")
    strings: list[Any] = []
    try:
        for operation, argument, _ in pickletools.genops(io.BytesIO(data)):
            if operation.name in _STRINGS:
                strings.append(argument)
            elif operation.name not in _WITHOUT_EFFECT:
                raise InputError(
                    f"has private tests in a pickle that does more than hold a string ({operation.name})"
                )
    except (ValueError, EOFError, IndexError, OverflowError, MemoryError):
        raise InputError("has private tests in a damaged pickle") from None
    if len(strings) != 1:
        raise InputError("has private tests in a pickle that does not hold one string")
    return strings[0].decode("utf-8") if isinstance(strings[0], bytes) else str(strings[0])


_STRINGS = {
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_WITHOUT_EFFECT = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
