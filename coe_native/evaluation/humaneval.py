"""HumanEval: the share of programming problems that a model solves at first attempt (Chen et al., 2021)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from coe_native.corpus.batching import Tokens
from coe_native.corpus.documents import Message
from coe_native.errors import InputError
from coe_native.evaluation.problems import Problem, program, read_lines
from coe_native.evaluation.sandbox import Outcome
from coe_native.files.atomic import check_target, replacing
from coe_native.files.regular import read_regular
from coe_native.llama.generation import Generation, Sampling, generate
from coe_native.llama.loaded_model import LoadedModel

_MOST_RESULTS = 1 << 28
"""Most bytes of a file of attempts; an answer of 16,384 tokens has some 64 KB."""

RAW_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a function ends that a model without a chat template completes (Chen et al., 2021)."""


@dataclass(frozen=True)
class Attempt:
    """A model's answer to a problem, and its result.

    Attributes:
        task_id: The problem.
        completion: The answer.
        tokens: Number of its tokens.
        ended: Why it ended (`Generation.ended`).
        run: Digest of the model, options and problems (`Solver.run`).
        passed: Whether it passed; None until it has been run.
        result: ``passed``, or the reason why it did not.
        isolated: Whether it ran isolated.
    """

    task_id: str
    completion: str
    tokens: int
    ended: str
    run: str
    passed: bool | None = None
    result: str | None = None
    isolated: bool | None = None


@dataclass(frozen=True)
class Solver:
    """A loaded model that solves problems.

    Attributes:
        model: The model.
        sampling: How tokens are drawn.
        max_tokens: Most tokens of an answer.
        stop: Texts before which an answer ends.
        raw: Let the model continue the prompt, instead of asking through its chat template with thinking off.
    """

    model: LoadedModel
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16384
    stop: tuple[str, ...] = ()
    raw: bool = False

    def __call__(self, problem: Problem) -> Generation:
        """Return the model's answer to a problem.

        Raises:
            InputError: The problem does not fit into the context, or the model has no chat template.
        """
        try:
            prompt = self._prompt(problem)
            if len(prompt) >= self.model.n_ctx:
                raise InputError(f"needs {len(prompt)} tokens, but the context has {self.model.n_ctx} (--ctx)")
        except InputError as error:
            raise InputError(f"problem {problem.task_id[:80]}: {error}") from error
        # Each problem has its own seed, so that results do not depend on the problems before.
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
                f"{self.model.moe.path}: has no chat template: --raw lets it continue the prompt instead"
            )
        if self.model.text.thinks:
            raise InputError(
                f"{self.model.moe.path}: its chat template opens a block of thinking that cannot be closed "
                f"({self.model.text.thinks}), so thinking is not off; pass --raw to continue the prompt instead"
            )
        text = (
            "Complete this Python function. Answer with the complete function in one code block.\n\n"
            f"```python\n{problem.prompt.rstrip()}\n```"
        )
        chat = self.model.text
        return chat.tokenize(chat.render_chat((Message("user", text),), reply=True), parse_special=True)

    def run(self, problems: Sequence[Problem]) -> str:
        """Return a digest of the problems, the model and the options, by which `Results` recognises a run."""
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
    """Attempts in a ``.jsonl`` file, which is complete after each of them.

    Args:
        path: The file.
        run: The digest of the run (`Solver.run`).
        resume: Keep the attempts in the file.
        force: Replace the file, unless `resume` is set.
        inputs: Files that must not be replaced.

    Attributes:
        run: The digest of the run.
        attempts: The attempts, by problem.

    Raises:
        InputError: The file exists, and neither `resume` nor `force` is set; or it belongs to another run.
    """

    def __init__(self, path: Path, run: str, *, resume: bool, force: bool, inputs: Iterable[Path] = ()) -> None:
        check_target(path, force=True, inputs=tuple(inputs))
        if path.exists() and not resume and not force:
            raise InputError(f"{path}: exists; continue it with --resume, or replace it with --force")
        self._path = path
        self.run = run
        self.attempts: dict[str, Attempt] = {}
        if resume and path.exists():
            try:
                attempts = list(read_lines(path, read_regular(path, _MOST_RESULTS), Attempt))
            except InputError as error:
                raise InputError(
                    f"{error}; it is not a file of answers, or is damaged; choose another file"
                ) from error
            for attempt in attempts:
                if attempt.run != run:
                    raise InputError(
                        f"{path}: belongs to another model, problems or options; use the same, or start over with "
                        "--force and without --resume"
                    )
                self.attempts[attempt.task_id] = attempt

    def add(self, attempt: Attempt) -> None:
        """Add an attempt, or replace the one at the same problem, and write the file."""
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
    """Make one attempt at each problem, unless `results` has one already.

    Args:
        problems: The problems.
        solver: Writes an answer; usually a `Solver`.
        results: Where attempts are kept.
        judge: Runs a program; usually `Sandbox.run`. It also runs attempts of earlier calls that have not
            been run yet. None: nothing that the model writes is run.
        progress: Called with all attempts after each problem.

    Returns:
        The attempts, in the order of the problems.
    """
    for problem in problems:
        attempt = results.attempts.get(problem.task_id)
        if attempt is None:
            written = solver(problem)
            attempt = Attempt(
                task_id=problem.task_id,
                completion=written.text,
                tokens=written.n_tokens,
                ended=written.ended,
                run=results.run,
            )
            results.add(attempt)
        if judge is not None and attempt.passed is None:
            outcome = judge(program(problem, attempt.completion))
            results.add(replace(attempt, passed=outcome.passed, result=outcome.result, isolated=outcome.isolated))
        progress(results.attempts)
    return [results.attempts[problem.task_id] for problem in problems]
