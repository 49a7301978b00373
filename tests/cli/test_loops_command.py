"""`coe-native loops`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import TWO_THREADS, by_line, check_options_refused, ok, report, run

from coe_native.recipes import demo

SHORT = ("--raw", "--max-tokens", 40, "--ctx", 512, *TWO_THREADS)
LOOP = "and so on, " * 20


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    """Return a directory with prompts, a mask, and ready-made answers of which 3 of 10 loop."""
    directory = tmp_path_factory.mktemp("loops")
    (directory / "p.txt").write_text("def first(values):\n\nclass Point:\n")
    (directory / "mask.json").write_text((texts / "mask.json").read_text())
    answers = [
        {
            "task_id": name,
            "completion": completion,
            "tokens": 9,
            "ended": "length" if completion == LOOP else "end",
        }
        for name, completion in (("1", LOOP), ("1", LOOP), ("3", LOOP), ("3", "fine"), *(("4", "well"),) * 6)
    ]
    (directory / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    (directory / "named.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers[:4]))
    (directory / "broken.jsonl").write_text('{"task_id": "1"}\n')
    (directory / "empty.txt").write_text("\n")
    return directory


def test_ready_made_answers_are_counted(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    told = report("loops", "--answers", files / "answers.jsonl", "-o", out)
    assert (told["looping"], told["total"], told["share"]) == (3, 10, 0.3)
    low, high = told["interval"]
    assert low < 0.3 < high
    assert (told["unfinished"], told["truncated"], told["tokens"]) == (3, 0, 90)
    assert [(each["task_id"], each["looping"], each["total"]) for each in told["prompts"]] == [
        ("1", 2, 2),
        ("3", 1, 2),
    ]
    assert [row["looping"] for row in rows(out)] == [True] * 3 + [False] * 7
    assert rows(out)[0]["period"] == len("and so on, ")


def test_prompts_with_most_loops_are_named_with_their_text(files: Path) -> None:
    line = ("loops", "--prompts", files / "p.txt", "--answers", files / "named.jsonl")
    assert report(*line)["prompts"][0]["prompt"] == "def first(values):"
    done = ok(*line)
    assert "2 of 2" in done.err
    assert "def first(values):" in done.err
    assert "75.0%" in done.out


def test_too_few_answers_are_warned_of(files: Path) -> None:
    done = ok("loops", "--answers", files / "answers.jsonl")
    warning = next(line for line in done.err.splitlines() if line.startswith("warning: "))
    assert "--samples" in warning
    assert not ok("loops", "--answers", files / "answers.jsonl", "--precision", 40).err.count("warning: ")


def test_more_loops_than_allowed_fail(files: Path) -> None:
    line = ("loops", "--answers", files / "answers.jsonl", "--json")
    failed = run(*line, "--max-loops", 29)
    assert failed.status == 1
    assert failed.json["looping"] == 3
    assert "30.0%" in failed.err.splitlines()[-1]
    assert run(*line, "--max-loops", 30).status == 0


def test_parent_and_specialist_answer_the_same_prompts(files: Path, tmp_path: Path) -> None:
    out, parent = tmp_path / "r.jsonl", tmp_path / "r.jsonl.parent.jsonl"
    line = ("loops", demo.MODEL, "--prompts", files / "p.txt", *SHORT, "--samples", 2)
    told = report(*line, "--mask", files / "mask.json", "-o", out)
    assert told["total"] == told["parent"]["total"] == told["paired"]["total"] == 4
    assert told["parent"]["looping"] == told["paired"]["both"] + told["paired"]["only_a"]
    assert told["looping"] == told["paired"]["both"] + told["paired"]["only_b"]
    names = [("1", 0), ("1", 1), ("3", 0), ("3", 1)]
    for path in (out, parent):
        assert sorted((row["task_id"], row.get("sample", 0)) for row in rows(path)) == names
        assert all("looping" in row for row in rows(path))
    plain = tmp_path / "plain.jsonl"
    ok(*line, "-o", plain)
    # The parent is the model without the mask, with the same seeds.
    assert rows(plain) == rows(parent)
    assert [row["completion"] for row in rows(out)] != [row["completion"] for row in rows(parent)]
    texts = {row["completion"] for row in rows(parent) if row["task_id"] == "1"}
    assert len(texts) == 2, "samples have seeds of their own"
    compared = report("compare-runs", parent, out)
    assert {key: compared[key] for key in told["paired"]} == told["paired"]
    shown = ok(*line, "--mask", files / "mask.json", "-o", out, "--resume")
    assert "parent" in shown.out
    assert "looping share" in shown.err


def test_a_run_is_continued_with_more_prompts_and_samples(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    line = ("loops", demo.MODEL, "--prompts", files / "p.txt", *SHORT, "-o", out)
    assert report(*line, "--limit", 1)["total"] == 1
    first = rows(out)
    assert run(*line).status == 2
    assert report(*line, "--resume", "--samples", 2)["total"] == 4
    assert rows(out)[0] == first[0]
    assert report(*line, "--resume", "--limit", 1, "--samples", 2)["total"] == 2
    assert len(rows(out)) == 4


def test_an_existing_file_is_noticed_before_the_parent_answers(files: Path, tmp_path: Path) -> None:
    """Otherwise hours could pass until then."""
    out = tmp_path / "r.jsonl"
    out.write_text("")
    line = ("loops", demo.MODEL, "--prompts", files / "p.txt", *SHORT, "--mask", files / "mask.json", "-o", out)
    refused = run(*line)
    assert refused.status == 2
    assert list(tmp_path.iterdir()) == [out]


BAD_LINES: list[tuple[str, str]] = [
    ("loops", "MODEL.*--answers"),
    ("loops DEMO", "--prompts"),
    ("loops DEMO --prompts p.txt", "template"),
    ("loops DEMO --prompts empty.txt --raw", r"empty\.txt"),
    ("loops DEMO --prompts p.txt --raw --samples 0", "samples"),
    ("loops DEMO --prompts p.txt --raw --max-loops 101", "max-loops"),
    ("loops DEMO --prompts p.txt --raw --resume", "-o"),
    ("loops DEMO --prompts p.txt --raw --ctx 4", "ctx|context|1: "),
    ("loops DEMO --prompts p.txt --raw -o p.txt --force", r"p\.txt.*input"),
    ("loops --answers broken.jsonl", r"broken\.jsonl:1: "),
    ("loops --answers answers.jsonl --prompts p.txt", r"answers\.jsonl.* 4"),
    ("loops --answers answers.jsonl -o answers.jsonl --force", r"answers\.jsonl.*input"),
]


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
