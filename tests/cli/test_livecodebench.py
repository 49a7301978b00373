"""`coe-native livecodebench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import TWO_THREADS, by_line, check_input_refused, check_options_refused, ok, report, run
from support.contest import contest_lines, contest_record, method_record

from coe_native.recipes import demo

RIGHT = "print(sum(map(int, input().split())))"
JUDGE = ("--allow-code-execution", "--allow-unisolated")
SHORT = ("--raw", "--max-tokens", 12, "--ctx", 1024, *TWO_THREADS)


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory of problems in two files: three easy and a hard one, from 2024-01 to 2024-04."""
    directory = tmp_path_factory.mktemp("contest")
    one = [contest_record(name, contest_date=f"2024-0{month}-10") for month, name in enumerate(("a", "b", "c"), 1)]
    (directory / "test.jsonl").write_text(contest_lines(one))
    (directory / "test2.jsonl").write_text(contest_lines([method_record("d", contest_date="2024-04-10")]))
    return directory


def answers(path: Path, **codes: list[str]) -> Path:
    """Write answers in LiveCodeBench's custom format."""
    path.write_text(
        "".join(json.dumps({"question_id": name, "code_list": each}) + "\n" for name, each in codes.items())
    )
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ready_made_answers_are_judged_by_difficulty(contest: Path, tmp_path: Path) -> None:
    method = "class Solution:\n    def total(self, numbers, start):\n        return sum(numbers) + start\n"
    ready = answers(tmp_path / "a.jsonl", a=[RIGHT], b=["print(3)"], d=[method])
    out = tmp_path / "r.jsonl"
    line = ("livecodebench", "--problems", contest, "--answers", ready, *JUDGE, "-o", out)
    told = report(*line)
    assert (told["problems"], told["judged"], told["passed"], told["total"]) == (4, 3, 2, 3)
    assert told["pass@1"] == pytest.approx(2 / 3)
    low, high = told["interval"]
    assert low < told["pass@1"] < high
    assert {name: (each["passed"], each["total"]) for name, each in told["categories"].items()} == {
        "easy": (1, 2),
        "hard": (1, 1),
    }
    assert told["results"] == str(out)
    assert [row["passed"] for row in rows(out)] == [True, False, True]
    assert "test 2 of 3" in rows(out)[1]["result"]
    shown = ok(*line, "--force")
    assert "1 of 4" in shown.err, "problems without an answer are mentioned"
    assert "hard" in shown.out
    # Our own results are answers too.
    again = report("livecodebench", "--problems", contest, "--answers", out, *JUDGE)
    assert {key: again[key] for key in ("passed", "total", "categories")} == {
        key: told[key] for key in ("passed", "total", "categories")
    }


def test_several_answers_to_a_problem_all_count(contest: Path, tmp_path: Path) -> None:
    ready = answers(tmp_path / "a.jsonl", a=[RIGHT, "print(0)", RIGHT])
    told = report("livecodebench", "--problems", contest, "--answers", ready, *JUDGE)
    assert (told["passed"], told["total"]) == (2, 3)


def test_releases_and_dates_choose_problems(contest: Path, tmp_path: Path) -> None:
    """Answers to all problems may be given."""
    ready = answers(tmp_path / "a.jsonl", a=[RIGHT], b=[RIGHT], c=[RIGHT], d=["?"])
    line = ("livecodebench", "--problems", contest, "--answers", ready, *JUDGE)
    assert report(*line)["total"] == 4
    assert report(*line, "--from", "2024-02-10", "--to", "2024-03-10")["total"] == 2
    assert report(*line, "--from", "2024-04-01")["passed"] == 0
    assert report(*line, "--limit", 1)["total"] == 1
    only = answers(tmp_path / "b.jsonl", d=["?"])
    line = ("livecodebench", "--problems", contest, "--answers", only)
    assert report(*line, "--release", "v2")["problems"] == 1
    assert report(*line, "--release", "release_v2")["problems"] == 4


def test_answers_are_kept_unjudged_without_permission(contest: Path, tmp_path: Path) -> None:
    ready = answers(tmp_path / "a.jsonl", a=[f"open({str(tmp_path / 'ran')!r}, 'w')"])
    told = report("livecodebench", "--problems", contest, "--answers", ready, "-o", tmp_path / "r.jsonl")
    assert (told["judged"], told["passed"], told["total"], told["pass@1"]) == (0, 0, 0, None)
    assert not (tmp_path / "ran").exists()
    assert "passed" not in rows(tmp_path / "r.jsonl")[0]


def test_a_slow_program_fails_by_the_time_limit(contest: Path, tmp_path: Path) -> None:
    ready = answers(tmp_path / "a.jsonl", a=["while True: pass"])
    out = tmp_path / "r.jsonl"
    told = report(
        "livecodebench", "--problems", contest, "--answers", ready, *JUDGE, "--time-limit", 0.5, "-o", out
    )
    assert told["passed"] == 0
    assert "0.5 seconds" in rows(out)[0]["result"]


def test_a_model_writes_the_same_answers_again_and_others_with_a_mask(
    contest: Path, texts: Path, tmp_path: Path
) -> None:
    line = ("livecodebench", demo.MODEL, "--problems", contest, *SHORT, *JUDGE)
    told = report(*line, "-o", tmp_path / "one.jsonl")
    assert (told["problems"], told["judged"]) == (4, 4)
    assert told["tokens"] == 4 * 12
    ok(*line, "-o", tmp_path / "two.jsonl")
    ok(*line, "--mask", texts / "mask.json", "-o", tmp_path / "masked.jsonl")
    one, two, masked = (rows(tmp_path / f"{name}.jsonl") for name in ("one", "two", "masked"))
    assert one == two
    assert [row["task_id"] for row in masked] == [row["task_id"] for row in one]
    assert [row["completion"] for row in masked] != [row["completion"] for row in one]
    assert {row["run"] for row in masked} != {row["run"] for row in one}
    assert {row["category"] for row in one} == {"easy", "hard"}
    paired = report("compare-runs", tmp_path / "one.jsonl", tmp_path / "masked.jsonl")
    assert paired["total"] == 4


def test_a_run_is_continued(contest: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    line = ("livecodebench", demo.MODEL, "--problems", contest, *SHORT, "-o", out)
    ok(*line, "--limit", 2)
    first = rows(out)
    assert len(first) == 2
    refused = run(*line)
    assert refused.status == 2
    assert "--resume" in refused.err
    told = report(*line, "--resume", *JUDGE)
    assert (told["problems"], told["judged"]) == (4, 4)
    assert [row["completion"] for row in rows(out)[:2]] == [row["completion"] for row in first]
    other = run(*line, "--resume", "--seed", 5)
    assert other.status == 2
    assert "r.jsonl" in other.err
    # Dates choose among the answers, and so does the limit; the file is still that run's.
    assert report(*line, "--resume", "--from", "2024-03-01", *JUDGE)["judged"] == 2


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, contest: Path, texts: Path) -> Path:
    directory = tmp_path_factory.mktemp("bad")
    (directory / "test.jsonl").write_text((contest / "test.jsonl").read_text())
    (directory / "pickled.jsonl").write_text(contest_lines([contest_record(private_test_cases="gASVBQ==")]))
    (directory / "undated.jsonl").write_text(contest_lines([contest_record("u", contest_date=None)]))
    (directory / "empty").mkdir()
    (directory / "mask.json").write_text((texts / "mask.json").read_text())
    answers(directory / "answers.jsonl", a=[RIGHT])
    answers(directory / "other.jsonl", z=[RIGHT])
    (directory / "broken.jsonl").write_text('{"question_id": "a"}\n')
    return directory


BAD_LINES: list[tuple[str, str]] = [
    ("livecodebench --problems test.jsonl", "MODEL.*--answers"),
    ("livecodebench DEMO", "--problems"),
    ("livecodebench DEMO --problems empty --raw -o out.jsonl", "empty"),
    ("livecodebench DEMO --problems test.jsonl --release v2 --raw -o out.jsonl", "test2"),
    ("livecodebench DEMO --problems test.jsonl --from 2025-01-01 --raw -o out.jsonl", r"test\.jsonl"),
    ("livecodebench DEMO --problems undated.jsonl --to 2025-01-01 --raw -o out.jsonl", "contest_date"),
    ("livecodebench DEMO --problems test.jsonl --problems test.jsonl --raw -o out.jsonl", "again"),
    ("livecodebench DEMO --problems test.jsonl -o out.jsonl", "template"),
    ("livecodebench DEMO --problems test.jsonl --raw --ctx 16 -o out.jsonl", "a: "),
    ("livecodebench DEMO --problems test.jsonl --raw -o test.jsonl --force", r"test\.jsonl.*input"),
    ("livecodebench DEMO --problems test.jsonl --raw --mask mask.json -o mask.json --force", r"mask\.json.*input"),
    ("livecodebench --problems test.jsonl --answers other.jsonl", r"other\.jsonl.* z"),
    ("livecodebench --problems test.jsonl --answers broken.jsonl", r"broken\.jsonl:1: "),
    (
        "livecodebench --problems test.jsonl --answers answers.jsonl -o answers.jsonl --force",
        r"answers\.jsonl.*input",
    ),
    ("livecodebench --problems test.jsonl --answers answers.jsonl --time-limit 0", "time-limit"),
]


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(bad: Path, line: str, pattern: str) -> None:
    check_options_refused(bad, line, pattern)


def test_answers_to_other_problems_than_the_chosen_ones_are_refused(bad: Path) -> None:
    line = ("livecodebench", "--problems", "test.jsonl", "--answers", "answers.jsonl", "--from", "2024-02-01")
    done = run(*line, cwd=bad)
    assert done.status == 2
    assert "answers.jsonl" in done.err.splitlines()[-1]


def test_hostile_tests_are_refused_before_a_program_runs(bad: Path) -> None:
    ready = answers(bad / "own.jsonl", **{"own-1": [RIGHT]})
    line = (
        f"livecodebench --problems pickled.jsonl --answers {ready.name} --allow-code-execution --allow-unisolated"
    )
    check_input_refused(bad, line, r"pickled\.jsonl:1: ")
