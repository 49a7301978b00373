"""Files of HumanEval problems."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.problems import ADD, RECORD, as_lines

import coe_native as coe
from coe_native.evaluation.problems import Problem, program, read_problems


def test_problems_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_text(as_lines([RECORD]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == read_problems(packed) == [ADD]


def test_problems_are_read_from_other_containers(tmp_path: Path) -> None:
    records = [RECORD | {"task_id": number, "more": 5} for number in range(2)]
    expected = [replace(ADD, task_id=str(number)) for number in range(2)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r) + "\n" for r in records).encode())
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    for name in ("a.json", "b.jsonl", "c.parquet"):
        assert read_problems(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"p\.jsonl"),
        (as_lines([RECORD, RECORD]).encode(), "Test/0"),
        (b'{"task_id": 1}', r":1: "),
        (as_lines([RECORD]).replace('"total"', '"total; import os"').encode(), ":1: .*function"),
        (b"\x1f\x8b\x08garbage", r"p\.jsonl"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], r"p\.jsonl"),
        (gzip.compress(b"x" * (70 << 20), mtime=0), r"p\.jsonl"),
    ],
)
def test_bad_problems_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match=said):
        read_problems(path)


def test_too_many_problems_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe_native.evaluation.problems._MOST_BYTES", 1 << 20)
    path = tmp_path / "p.jsonl"
    path.write_text(as_lines([RECORD | {"task_id": str(n), "test": "x" * (1 << 18)} for n in range(5)]))
    with pytest.raises(coe.InputError, match="1 MB"):
        read_problems(path)


def judged(problem: Problem, answer: str) -> bool:
    """Whether the judging program runs to its end, in this process: the programs here are our own."""
    try:
        exec(program(problem, answer), {"__name__": "__main__"})
    except AssertionError:
        return False
    return True


PLUS_TEST = """
def assertion(out, exp, atol):
    assert abs(out - exp) <= atol

def check(candidate):
    inputs = [[1], [4]]
    results = [2.0, 5.0]
    for inp, exp in zip(inputs, results):
        assertion(candidate(*inp), exp, 1e-6)
"""

FORMATS: dict[str, tuple[dict[str, Any], str, str]] = {
    "HumanEval+": (
        {"task_id": "HumanEval/1", "prompt": "def more(x):\n", "entry_point": "more", "test": PLUS_TEST},
        "    return x + 1\n",
        "    return x + 2\n",
    ),
    "HumanEval+ as released": (
        {
            "task_id": "HumanEval/2",
            "prompt": "def half(x):\n",
            "entry_point": "half",
            "canonical_solution": "    return [x / 2]\n",
            "contract": "",
            "base_input": [[3]],
            "plus_input": [[5], [0]],
            "atol": 0,
        },
        "    return [x * 0.5 + 1e-9]\n",
        "    return [x * 0.5 + 1e-3]\n",
    ),
    "HumanEval+, any root": (
        {
            "task_id": "HumanEval/32",
            "prompt": "def find_zero(xs):\n",
            "entry_point": "find_zero",
            "canonical_solution": "    return 1.0\n",
            "base_input": [[[-1, 0, 1]]],
            "plus_input": {},
            "atol": 1e-4,
        },
        "    return -1.0\n",
        "    return 0.5\n",
    ),
    "MBPP": (
        {
            "task_id": 11,
            "text": "Write a function to add.",
            "code": "def helper(): pass\ndef add(a, b):\r\n  return a + b",
            "test_setup_code": "import math",
            "test_list": ["assert add(1, 2) == math.floor(3.5)", "assert add(0, 0) == 0"],
            "challenge_test_list": [],
        },
        "```python\ndef add(a, b):\n    return a + b\n```",
        "def add(a, b):\n    return a - b\n",
    ),
    "MBPP, sanitised": (
        {
            "source_file": "a.ipynb",
            "task_id": 2,
            "prompt": "Write a function to add.",
            "code": "def add(a, b):\n  return a + b",
            "test_imports": ["import math"],
            "test_list": ["assert add(1, 2) == math.floor(3.5)"],
        },
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return 0\n",
    ),
    "MBPP+": (
        {
            "task_id": 3,
            "prompt": "Write a function to add.",
            "code": "def add(a, b):\n  return a + b",
            "test_imports": [],
            "test_list": ["assert add(1, 2) == 3"],
            "test": "for a in range(3):\n    assert add(a, 1) == a + 1\n",
        },
        "def add(a, b):\n    return a + b\n",
        "def add(a, b):\n    return 3\n",
    ),
    "MultiPL-E": (
        {
            "name": "HumanEval_53_add",
            "language": "py",
            "prompt": "def add(x: int, y: int) -> int:\n",
            "tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n",
            "stop_tokens": ["\ndef"],
        },
        "    return x + y\n",
        "    return x\n",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("container", ["jsonl", "parquet"])
def test_each_published_format_is_judged_by_its_own_tests(tmp_path: Path, name: str, container: str) -> None:
    record, right, wrong = FORMATS[name]
    path = tmp_path / f"p.{container}"
    if container == "jsonl":
        path.write_text(json.dumps(record) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([{k: v for k, v in record.items() if v not in ([], {})}]), path)
    (problem,) = read_problems(path)
    assert judged(problem, right)
    assert not judged(problem, wrong)
    task = problem.task()
    assert task.task_id == str(record.get("task_id", record.get("name")))
    asked = task.messages[0].content
    assert problem.entry_point in asked
    assert "code block" in asked


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_id": "Mbpp/2"}, "mbppplus"),
        ({"base_input": "x"}, ":1: "),
        ({"atol": "x"}, ":1: "),
        ({"prompt": None}, "lacks prompt"),
    ],
)
def test_released_problems_that_cannot_be_judged_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(FORMATS["HumanEval+ as released"][0] | change) + "\n")
    with pytest.raises(coe.InputError, match=said):
        read_problems(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    "record",
    [
        {"name": "a", "language": "lua", "prompt": "function f()", "tests": ""},
        {"name": "a", "prompt": "no function", "tests": ""},
        {"task_id": 1, "text": "t", "code": "def f(): pass", "test_list": ["assert g() == 1"]},
        {"task_id": 1, "code": "def f(): pass", "test_list": ["assert f() == 1"]},
    ],
)
def test_problems_of_other_languages_and_without_functions_are_refused(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(coe.InputError, match=r"p\.jsonl:1: "):
        read_problems(tmp_path / "p.jsonl")
