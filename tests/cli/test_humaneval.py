"""`coe-native humaneval`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.command_line import (
    ENVIRONMENT,
    TWO_THREADS,
    by_line,
    check_options_refused,
    ok,
    report,
    run,
)
from support.problems import ADD, as_lines

from coe_native.recipes import demo


def test_answers_are_judged_on_request(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(as_lines([ADD]))
    line = (
        *("humaneval", demo.MODEL, "--problems", tmp_path / "p.jsonl", "--raw", "--max-tokens", 30, "--ctx", 256),
        *("-o", tmp_path / "r.jsonl", *TWO_THREADS),
    )
    done = ok(*line)
    assert "1 answer" in done.err
    assert not done.out
    told = report(*line, "--resume", "--allow-code-execution", "--allow-unisolated")
    assert (told["problems"], told["judged"], told["passed"], told["pass@1"]) == (1, 1, 0, 0.0)


def test_programs_run_unisolated_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless that is allowed: then a warning comes first, and the results say so."""
    (tmp_path / "p.jsonl").write_text(as_lines([ADD]))
    line = (
        *("humaneval", demo.MODEL, "--problems", tmp_path / "p.jsonl", "--raw", "--max-tokens", 10, "--ctx", 256),
        *("-o", tmp_path / "r.jsonl", "--allow-code-execution", *TWO_THREADS),
    )
    monkeypatch.setitem(ENVIRONMENT, "PATH", "/nowhere")
    refused = run(*line)
    assert refused.status == 1
    assert len(refused.err.splitlines()) == 1
    assert "bubblewrap" in refused.err or sys.platform != "linux"
    assert "--allow-unisolated" in refused.err
    assert not (tmp_path / "r.jsonl").exists()
    allowed = ok(*line, "--allow-unisolated")
    first, *_, last = allowed.err.splitlines()
    assert first.startswith("warning: ")
    assert "unisolated" in first
    assert "r.jsonl" in last
    assert json.loads((tmp_path / "r.jsonl").read_text())["isolated"] is False
    assert report(*line, "--allow-unisolated", "--resume")["isolated"] is False


def test_ready_made_answers_are_judged_without_a_model(tmp_path: Path) -> None:
    problems, answers, out = (tmp_path / f"{name}.jsonl" for name in ("problems", "answers", "results"))
    problems.write_text(as_lines([replace(ADD, task_id=str(number)) for number in range(4)]))
    given = [
        {"task_id": "0", "completion": ADD.canonical_solution},
        {"task_id": "1", "solution": "def total(numbers):\n    return 2 * sum(numbers)\n"},
        {"task_id": "2", "completion": "    return 0\n"},
    ]
    answers.write_text("".join(json.dumps(answer) + "\n" for answer in given))
    line = ("humaneval", "--problems", problems, "--answers", answers, "-o", out)
    judged = report(*line, "--allow-code-execution", "--allow-unisolated")
    assert (judged["problems"], judged["judged"], judged["passed"], judged["total"]) == (4, 3, 2, 3)
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert [(row["task_id"], row["passed"]) for row in rows] == [("0", True), ("1", True), ("2", False)]
    # A file of results gives its answers, but not its results, for they may have been judged by other rules.
    unjudged = report("humaneval", "--problems", problems, "--answers", out, "--limit", 2)
    assert (unjudged["problems"], unjudged["judged"], unjudged["total"]) == (2, 0, 0)
    assert "pass@1" in ok(*line, "--force", "--allow-code-execution", "--allow-unisolated").out
    compared = report("compare-runs", out, out)
    assert (compared["both"], compared["neither"]) == (2, 1)


BAD_LINES: list[tuple[str, str]] = [
    ("humaneval DEMO --problems p.jsonl --raw --ctx 16 -o out.jsonl", "Test/0"),
    ("humaneval DEMO --problems p.jsonl --raw --resume -o mask.json", r"mask\.json"),
    ("humaneval DEMO --problems mask.json -o out.jsonl", r"mask\.json: "),
    ("humaneval DEMO --problems p.jsonl -o out.jsonl", "template"),
    ("humaneval DEMO --problems p.jsonl --raw --temperature -1 -o out.jsonl", "temperature"),
    ("humaneval DEMO --problems p.jsonl -o p.jsonl --force", r"p\.jsonl.*input"),
    ("humaneval --problems p.jsonl", "MODEL.*--answers"),
    ("humaneval DEMO --problems p.jsonl --raw --resume", "-o"),
    ("humaneval --problems p.jsonl --answers mask.jsonl", r"mask\.jsonl:1: "),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
