"""`coe-native compare-runs`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import by_line, check_input_refused, check_options_refused, ok, report

from coe_native.evaluation.attempts import Attempt, Results


def write(path: Path, outcomes: str, *, what: str = "passed") -> Path:
    """Write a run: ``+`` for a task that has the property, ``-`` for one that has not."""
    with Results(path, "run") as results:
        for number, outcome in enumerate(outcomes):
            category = "easy" if number % 2 else "hard"
            attempt = Attempt(str(number), "", category=category, **{what: outcome == "+"})
            results.add(attempt)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    write(directory / "a.jsonl", "++++++++--" * 2)
    write(directory / "b.jsonl", "++++++----" * 2)
    write(directory / "worse.jsonl", "--------++" * 2)
    write(directory / "loops.jsonl", "+-" * 10, what="looping")
    write(directory / "more.jsonl", "++++++++--" * 3)
    with Results(directory / "unjudged.jsonl", "run") as results:
        results.add(Attempt("0", "text"))
    with Results(directory / "others.jsonl", "run") as results:
        results.add(Attempt("x", "text", passed=True))
    (directory / "broken.jsonl").write_text('{"task_id": 5}\n')
    return directory


def test_runs_are_compared_task_by_task(runs: Path) -> None:
    told = report("compare-runs", runs / "a.jsonl", runs / "b.jsonl")
    assert (told["property"], told["total"], told["unpaired"]) == ("passed", 20, 0)
    assert (told["both"], told["only_a"], told["only_b"], told["neither"]) == (12, 4, 0, 4)
    assert (told["a_count"], told["b_count"]) == (16, 12)
    assert told["difference"] == pytest.approx(-0.2)
    low, high = told["interval"]
    assert low < -0.2 < high
    assert told["p_value"] == pytest.approx(0.125)
    assert told["needed"] > 20
    assert {name: each["total"] for name, each in told["categories"].items()} == {"easy": 10, "hard": 10}
    assert sum(each["only_a"] for each in told["categories"].values()) == 4


def test_a_difference_that_may_be_chance_is_called_so(runs: Path) -> None:
    done = ok("compare-runs", runs / "a.jsonl", runs / "b.jsonl")
    assert "-20.0" in done.out
    assert "hard" in done.out
    assert "too few" in done.err
    assert "chance" in done.err
    told = report("compare-runs", runs / "a.jsonl", runs / "b.jsonl")
    assert str(told["needed"]) in done.err


def test_a_clear_difference_needs_no_more_tasks(runs: Path) -> None:
    done = ok("compare-runs", runs / "a.jsonl", runs / "worse.jsonl")
    assert "too few" not in done.err
    told = report("compare-runs", runs / "a.jsonl", runs / "worse.jsonl")
    assert told["p_value"] < 0.05
    assert told["needed"] is None
    back = report("compare-runs", runs / "worse.jsonl", runs / "a.jsonl")
    assert back["difference"] == -told["difference"]
    assert back["p_value"] == told["p_value"]


def test_the_same_run_shows_no_difference(runs: Path) -> None:
    told = report("compare-runs", runs / "a.jsonl", runs / "a.jsonl")
    assert (told["difference"], told["p_value"], told["needed"]) == (0, 1, None)
    done = ok("compare-runs", runs / "a.jsonl", runs / "a.jsonl")
    assert "without a difference" in done.err


def test_tasks_of_one_run_only_are_left_out_and_counted(runs: Path) -> None:
    told = report("compare-runs", runs / "a.jsonl", runs / "more.jsonl")
    assert (told["total"], told["unpaired"]) == (20, 10)
    assert "10" in ok("compare-runs", runs / "a.jsonl", runs / "more.jsonl").err


def test_loops_are_compared_too(runs: Path) -> None:
    told = report("compare-runs", runs / "loops.jsonl", runs / "loops.jsonl")
    assert (told["property"], told["both"], told["neither"]) == ("looping", 10, 10)


BAD_LINES: list[tuple[str, str]] = [
    ("compare-runs a.jsonl missing.jsonl", r"missing\.jsonl"),
    ("compare-runs a.jsonl broken.jsonl", r"broken\.jsonl:1: "),
    ("compare-runs a.jsonl unjudged.jsonl", r"unjudged\.jsonl.*judged"),
    ("compare-runs a.jsonl loops.jsonl", r"loops\.jsonl"),
    ("compare-runs a.jsonl others.jsonl", r"others\.jsonl.*common"),
    ("compare-runs a.jsonl .", "directory"),
]


@by_line("pattern", BAD_LINES)
def test_runs_that_cannot_be_compared_are_refused(runs: Path, line: str, pattern: str) -> None:
    check_input_refused(runs, line, pattern)


def test_two_runs_are_needed(runs: Path) -> None:
    check_options_refused(runs, "compare-runs a.jsonl", "B.jsonl")
