"""Files of answers: ready-made ones, and those that a run writes and goes on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.problems import Scripted

import coe_native as coe
from coe_native.corpus.documents import Message
from coe_native.evaluation import attempts as module
from coe_native.evaluation.answer_files import read_answers
from coe_native.evaluation.attempts import Attempt, Results, judge_answers, read_attempts, write_answers
from coe_native.evaluation.problems import fenced, in_fence
from coe_native.evaluation.sandbox import Outcome
from coe_native.evaluation.tasks import Task

TASKS = [Task(str(number), (Message("user", "?"),), "?", "easy") for number in range(4)]


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_our_own_files_are_read_without_their_results(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Results(path, "run") as results:
        results.add(Attempt("a", "text", 5, "end", "run", 0, "easy", True, "passed", True, False, None))
        results.add(Attempt("a", "other", 6, "length", "run", 1, "easy", False, "wrong", True, True, 3))
    assert read_answers(path) == [
        Attempt("a", "text", tokens=5, ended="end", category="easy"),
        Attempt("a", "other", tokens=6, ended="length", category="easy", sample=1),
    ]


def test_livecodebenchs_custom_format_is_read(tmp_path: Path) -> None:
    records = [
        {"question_id": "abc_1", "code_list": ["print(1)", "print(2)"]},
        {"question_id": 7, "code_list": []},
    ]
    expected = [Attempt("abc_1", f"print({n})", sample=n - 1, is_program=True) for n in (1, 2)]
    assert read_answers(written(tmp_path / "r.jsonl", *records)) == expected
    (tmp_path / "r.json").write_text(json.dumps(records))
    assert read_answers(tmp_path / "r.json") == expected


def test_task_and_completion_or_solution_are_read(tmp_path: Path) -> None:
    records = [
        {"task_id": "a", "completion": "    return 1", "more": 5},
        {"task_id": "b", "solution": "def f(): pass", "difficulty": "Hard"},
        {"task_id": 3, "completion": ""},
        {"task_id": "a", "completion": "    return 2"},
    ]
    expected = [
        Attempt("a", "    return 1"),
        Attempt("b", "def f(): pass", category="hard", is_program=True),
        Attempt("3", ""),
        Attempt("a", "    return 2", sample=1),
    ]
    assert read_answers(written(tmp_path / "r.jsonl", *records)) == expected
    pq.write_table(pa.Table.from_pylist([{"task_id": "a", "completion": "x"}]), tmp_path / "r.parquet")
    assert read_answers(tmp_path / "r.parquet") == [Attempt("a", "x")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no answers"),
        ('{"task_id": "a"}\n', ":1: .*completion"),
        ('{"completion": "a"}\n', ":1: .*task_id"),
        ('{"task_id": "a", "completion": "x"}\n{"task_id": "b", "completion": 5}\n', ":2: .*completion"),
        ('{"question_id": "a", "code_list": "print()"}\n', ":1: .*code_list"),
        ('{"question_id": "a", "code_list": [null]}\n', ":1: .*code_list"),
        ('{"question_id": "a", "code_list": []}\n', "no answers"),
        ('{"task_id": {}, "completion": "x"}\n', ":1: .*task_id"),
        ('{"task_id": "a", "completion": "x", "tokens": "many"}\n', ":1: .*tokens"),
        ("print(1)\n", ":1: "),
        ("[" * 100_000, ":1: "),
    ],
)
def test_bad_answers_are_refused_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(coe.InputError, match=rf"r\.jsonl.*{said}") as error:
        read_answers(path)
    assert "\n" not in str(error.value)


def test_attempts_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = [
        Attempt("a", "é\n\u2028\x00", 5, "end", "run", 0, "easy", True, "passed", True),
        Attempt("a", "", sample=1, looping=True, period=7),
        Attempt("b", "\U0001f600"),
    ]
    with Results(tmp_path / "r.jsonl", "run") as results:
        for attempt in kept:
            results.add(attempt)
    assert read_attempts(tmp_path / "r.jsonl") == kept
    assert results.all_of(["b", "a", "c"]) == [kept[2], kept[0], kept[1]]


@pytest.mark.parametrize(
    "text", ["{", '{"task_id": "a"}', '{"task_id": "a", "completion": "", "passed": "yes"}', "[]"]
)
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f'{{"task_id": "a", "completion": ""}}\n{text}\n')
    with pytest.raises(coe.InputError, match=r"r\.jsonl:2: "):
        read_attempts(path)
    with pytest.raises(coe.InputError, match=r"r\.jsonl:2: "):
        Results(path, "run", resume=True)


def test_a_file_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "r.jsonl", {"task_id": "a", "completion": "", "run": "one"})
    with pytest.raises(coe.InputError, match=r"exists.*--resume"):
        Results(path, "one")
    with pytest.raises(coe.InputError, match=r"r\.jsonl.*--force"):
        Results(path, "two", resume=True)
    assert len(Results(path, "one", resume=True)) == 1
    with Results(path, "two", force=True) as replaced:
        assert len(replaced) == 0
        replaced.add(Attempt("b", ""))
    assert [attempt.task_id for attempt in read_attempts(path)] == ["b"]
    with pytest.raises(coe.InputError, match="input"):
        Results(path, "two", force=True, inputs=[path])
    missing = Results(tmp_path / "new.jsonl", "one", resume=True)
    assert len(missing) == 0


def test_an_answer_replaces_the_same_one_and_keeps_its_place(tmp_path: Path) -> None:
    with Results(tmp_path / "r.jsonl", "") as results:
        for name, text in (("a", "1"), ("b", "2"), ("a", "3")):
            results.add(Attempt(name, text))
    assert [(attempt.task_id, attempt.completion) for attempt in read_attempts(tmp_path / "r.jsonl")] == [
        ("a", "3"),
        ("b", "2"),
    ]


def test_an_error_does_not_lose_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHARE", 1e-9)  # after the first answer, it is never time to write

    def fail_in_the_end() -> None:
        with Results(tmp_path / "r.jsonl", "") as results:
            for number in range(50):
                results.add(Attempt(str(number), ""))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_end()
    assert len(read_attempts(tmp_path / "r.jsonl")) == 50


def test_the_file_is_not_written_anew_for_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the work would grow with the square of the answers."""
    n_written = 0
    encode = msgspec.json.encode

    def counted(value: object) -> bytes:
        nonlocal n_written
        n_written += 1
        return encode(value)

    monkeypatch.setattr(module.msgspec.json, "encode", counted)
    n = 3000
    with Results(tmp_path / "r.jsonl", "") as results:
        for number in range(n):
            results.add(Attempt(str(number), "x" * 100))
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == n
    assert n_written < 20 * n


def test_a_killed_run_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    code = (
        "import sys, pathlib; from coe_native.evaluation import attempts; attempts._SHARE = 1e9\n"
        "with attempts.Results(pathlib.Path(sys.argv[1]), 'run') as results:\n"
        "    for number in range(10**9):\n"
        "        results.add(attempts.Attempt(str(number), 'x' * 1000, run='run'))\n"
    )
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        end = time.monotonic() + 30
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = read_attempts(path)
        assert [attempt.task_id for attempt in kept] == [str(number) for number in range(len(kept))]
        assert kept
        Results(path, "run", resume=True)
        path.unlink()


def test_missing_answers_only_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    answers = {task.task_id: f"answer {task.task_id}" for task in TASKS}
    interrupted = Scripted(answers | {"2": KeyboardInterrupt}, samples=2)
    with pytest.raises(KeyboardInterrupt), Results(path, "run") as results:
        write_answers(TASKS, interrupted, results)
    assert [(each.task_id, each.sample) for each in read_attempts(path)] == [
        ("0", 0),
        ("0", 1),
        ("1", 0),
        ("1", 1),
    ]
    again, told = Scripted(answers, samples=2), []
    with Results(path, "run", resume=True) as results:
        write_answers(TASKS, again, results, lambda n_answers, n_tokens: told.append((n_answers, n_tokens)))
    assert again.asked == [("2", 0), ("2", 1), ("3", 0), ("3", 1)]
    assert [n_answers for n_answers, _ in told] == sorted(n_answers for n_answers, _ in told)
    attempts = read_attempts(path)
    assert len(attempts) == 8
    assert {(each.completion, each.tokens, each.ended, each.run, each.category) for each in attempts} == {
        (f"answer {task.task_id}", 7, "end", "run", "easy") for task in TASKS
    }


def test_answers_are_judged_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    judged: list[str] = []

    def judge(completion: str) -> Outcome:
        judged.append(completion)
        if completion == "stop" and len(judged) == 2:
            raise KeyboardInterrupt
        return Outcome(completion == "right", "said why", 0.1, isolated=True)

    with Results(path, "run") as results:
        for name, text in (("a", "right"), ("b", "stop"), ("c", "wrong")):
            results.add(Attempt(name, text, run="run"))
    judges = [(name, judge) for name in "abc"]
    with pytest.raises(KeyboardInterrupt), Results(path, "run", resume=True) as results:
        judge_answers(judges, results)
    assert [attempt.passed for attempt in read_attempts(path)] == [True, None, None]
    told: list[tuple[int, int]] = []
    with Results(path, "run", resume=True) as results:
        judge_answers(judges, results, lambda n_judged, n_passed: told.append((n_judged, n_passed)))
    assert judged == ["right", "stop", "stop", "wrong"]
    assert told == [(1, 1), (2, 1), (3, 1)]
    assert [(each.passed, each.result, each.isolated) for each in read_attempts(path)] == [
        (passed, "said why", True) for passed in (True, False, False)
    ]


def test_ready_made_programs_are_taken_whole(tmp_path: Path) -> None:
    """Also one with a fenced block in its text, and one that is fenced already."""
    program = 'def f():\n    """Like this:\n\n    ```\n    f()\n    ```\n    """\n    return 1\n'
    records = [
        {"task_id": "a", "solution": program},
        {"question_id": "b", "code_list": [program]},
        {"question_id": "c", "code_list": ["```python\nprint(1)\n```"]},
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    for answer in read_answers(tmp_path / "a.json"):
        assert answer.is_program
        (code,) = fenced(in_fence(answer.completion))
        assert code.strip() == (program.strip() if answer.task_id in "ab" else "print(1)")
