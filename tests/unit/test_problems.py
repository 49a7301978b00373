"""Files of problems that ask for a Python function."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.problems import ADD, RECORD, as_lines

import coe_native as coe
from coe_native.evaluation import problems as module
from coe_native.evaluation.problems import Problem, fenced, program, read_problems

HUMANEVAL_PLUS: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "prompt": 'def mean(values):\n    """Return the mean."""\n',
    "entry_point": "mean",
    "canonical_solution": "    return sum(values) / len(values)\n",
    "base_input": [[[1, 2]], [[5.5]]],
    "plus_input": [[[1e9, -1e9, 3]]],
    "atol": 0,
    "contract": "",
}
MBPP: dict[str, Any] = {
    "task_id": 11,
    "text": "Write a function to remove the first and last occurrence of a character.",
    "code": "def helper(s):\r\n    return s\r\ndef remove_ends(s, c):\r\n    return helper(s).strip(c)\r\n",
    "test_list": ['assert remove_ends("hello","h") == "ello"', 'assert remove_ends("aba","a") == "b"'],
    "test_setup_code": "import math",
    "challenge_test_list": [],
}
SANITISED_MBPP: dict[str, Any] = {
    "source_file": "x.ipynb",
    "task_id": 12,
    "prompt": "Write a function to sum a list.",
    "code": "def sum_all(xs):\n    return sum(xs)\n",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(sum_all([1, 2]), 3)", "assert sum_all([]) == 0"],
}
MBPP_PLUS = SANITISED_MBPP | {"test": "import math\nfor n in range(9):\n    assert sum_all([n, n]) == 2 * n\n"}
MULTIPL_E: dict[str, Any] = {
    "name": "HumanEval_3_below_zero",
    "language": "py",
    "prompt": 'def help():\n    pass\n\ndef below(xs: List[int]) -> bool:\n    """Below zero?"""\n',
    "doctests": "transform",
    "tests": "def check(candidate):\n    assert candidate([-1])\n\ndef test():\n    check(below)\n\ntest()",
    "stop_tokens": ["\ndef"],
}
HUGGING_FACES_HUMANEVAL_PLUS: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "prompt": HUMANEVAL_PLUS["prompt"],
    "canonical_solution": HUMANEVAL_PLUS["canonical_solution"],
    "entry_point": "mean",
    "test": """
def assertion(out, exp, atol):
    assert abs(out - exp) <= atol

def check(candidate):
    inputs = [[[1, 2]], [[4]]]
    results = [1.5, 4.0]
    for inp, exp in zip(inputs, results):
        assertion(candidate(*inp), exp, 1e-6)
""",
}
FORMATS = (HUGGING_FACES_HUMANEVAL_PLUS, HUMANEVAL_PLUS, MBPP, SANITISED_MBPP, MBPP_PLUS, MULTIPL_E)
IDS = ("HumanEval+ of Hugging Face", "HumanEval+", "MBPP", "sanitised MBPP", "MBPP+", "MultiPL-E")
SOLUTIONS = (
    "    return sum(values) / len(values)\n",
    "    return sum(values) / len(values)\n",
    "def remove_ends(s, c):\n    return s.strip(c)\n",
    "def sum_all(xs):\n    return sum(xs)\n",
    "def sum_all(xs):\n    return sum(xs)\n",
    "    return min(xs) < 0\n",
)


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(problem: Problem, answer: str) -> None:
    """Run the program of an answer, of our own, here."""
    exec(compile("from typing import List\n" + program(problem, answer), "<answer>", "exec"), {})


def test_problems_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_text(as_lines([ADD]))
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


@pytest.mark.parametrize("record", FORMATS, ids=IDS)
def test_each_format_accepts_right_answers_and_no_others(tmp_path: Path, record: dict[str, Any]) -> None:
    solution = SOLUTIONS[FORMATS.index(record)]
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [record]))
    run(problem, solution)
    run(problem, f"```python\n{solution}```")
    nothing = solution if solution.startswith("def") else ""
    wrong = f"{nothing.partition(chr(10))[0]}\n    return None\n" if nothing else "    return None\n"
    with pytest.raises((AssertionError, TypeError)):
        run(problem, wrong)


@pytest.mark.parametrize("record", [record for record in FORMATS if record is not HUMANEVAL_PLUS])
def test_parquet_with_lists_reads_as_json_lines_do(tmp_path: Path, record: dict[str, Any]) -> None:
    """EvalPlus releases JSON Lines only; its inputs are of many types."""
    present = {name: value for name, value in record.items() if value != []}
    pq.write_table(pa.Table.from_pylist([present]), tmp_path / "p.parquet")
    assert read_problems(tmp_path / "p.parquet") == read_problems(write(tmp_path / "p.jsonl", [record]))


def test_a_question_shows_the_task_and_its_examples(tmp_path: Path) -> None:
    for record in (MBPP, SANITISED_MBPP, MBPP_PLUS):
        (problem,) = read_problems(write(tmp_path / "p.jsonl", [record]))
        (message,) = problem.task().messages
        assert (record.get("text") or record["prompt"]) in message.content
        assert record["test_list"][0] in message.content
        assert problem.task().beginning.startswith('"""')
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [HUMANEVAL_PLUS]))
    assert HUMANEVAL_PLUS["prompt"].strip() in problem.task().messages[0].content


def test_the_function_that_is_asked_for_is_the_one_that_the_tests_call(tmp_path: Path) -> None:
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [MBPP]))
    assert problem.entry_point == "remove_ends"
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [MULTIPL_E]))
    assert problem.entry_point == "below"


@pytest.mark.parametrize(
    ("answer", "atol", "passes"),
    [
        ("    return sum(values) / len(values) + 1e-9\n", 0, True),  # floats are compared with 1e-6
        ("    return sum(values) / len(values) + 1e-4\n", 0, False),
        ("    return sum(values) / len(values) + 1e-4\n", 1e-3, True),
        ("    return str(sum(values) / len(values))\n", 0, False),
        ("    values.sort()\n    return sum(values) / len(values)\n", 0, True),  # inputs are copies
        ("    if len(values) == 3:\n        return 0\n    return sum(values) / len(values)\n", 0, False),
    ],
)
def test_inputs_of_evalplus_are_checked_against_its_solution(
    tmp_path: Path, answer: str, atol: float, passes: bool
) -> None:
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [HUMANEVAL_PLUS | {"atol": atol}]))
    if passes:
        run(problem, answer)
    else:
        with pytest.raises(AssertionError):
            run(problem, answer)


@pytest.mark.parametrize(("found", "passes"), [("1.0", True), ("-1.0", True), ("0.5", False)])
def test_any_root_of_a_polynomial_is_right(tmp_path: Path, found: str, passes: bool) -> None:
    """HumanEval/32 has several right answers."""
    record = HUMANEVAL_PLUS | {
        "task_id": "HumanEval/32",
        "prompt": "def find_zero(xs):\n",
        "entry_point": "find_zero",
        "canonical_solution": "    return 1.0\n",
        "base_input": [[[-1, 0, 1]]],
        "plus_input": [],
        "atol": 0.0001,
    }
    (problem,) = read_problems(write(tmp_path / "p.jsonl", [record]))
    if passes:
        run(problem, f"    return {found}\n")
    else:
        with pytest.raises(AssertionError):
            run(problem, f"    return {found}\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"p\.jsonl"),
        (as_lines([ADD, ADD]).encode(), r":2: .*Test/0"),
        (b'{"task_id": 1}', r":1: "),
        (as_lines([ADD]).replace('"total"', '"total; import os"').encode(), ":1: .*function"),
        (as_lines([ADD]).encode() + b"[1]\n", ":2: "),
        (as_lines([ADD]).encode() + b"{not json\n", ":2: "),
        (b"[" * 100_000, ":1: "),
        (b'{"task_id": 1, "base_input": ' + b"[" * 100_000 + b"\n", ":1: "),
        (b"\x1f\x8b\x08garbage", r"p\.jsonl"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], r"p\.jsonl"),
        (gzip.compress(b"x" * (70 << 20), mtime=0), r"p\.jsonl"),
    ],
)
def test_bad_problems_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match=said) as error:
        read_problems(path)
    assert "\n" not in str(error.value)


def test_a_file_with_too_much_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 2 << 20)
    path = tmp_path / "p.jsonl"
    path.write_text(as_lines([replace(ADD, task_id=str(n), test="x" * (1 << 20)) for n in range(2)]))
    with pytest.raises(coe.InputError, match="2 MB"):
        read_problems(path)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (HUMANEVAL_PLUS | {"base_input": 5}, "base_input"),
        (HUMANEVAL_PLUS | {"base_input": [5]}, "input"),
        (HUMANEVAL_PLUS | {"plus_input": {"a": 1}}, "input"),
        (HUMANEVAL_PLUS | {"atol": "much"}, "atol"),
        (HUMANEVAL_PLUS | {"task_id": "Mbpp/2"}, "mbppplus"),
        (HUMANEVAL_PLUS | {"entry_point": "1x"}, "function"),
        (MBPP | {"test_list": "assert 1"}, "test_list"),
        (MBPP | {"test_list": []}, "test"),
        (MBPP | {"test_list": ["assert other(1)"]}, "call"),
        (MBPP | {"code": "x = 1"}, "call"),
        (MBPP | {"text": None}, "text"),
        (MULTIPL_E | {"language": "rs"}, "rs"),
        (MULTIPL_E | {"prompt": "# nothing"}, "function"),
        (MULTIPL_E | {"tests": None}, "tests"),
        (RECORD | {"prompt": 5}, "prompt"),
        (RECORD | {"prompt": None}, "lacks prompt"),
        (RECORD | {"test": ["a"]}, "test"),
    ],
)
def test_fields_of_wrong_types_are_refused_with_their_line(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "p.jsonl", [RECORD, record])
    with pytest.raises(coe.InputError, match=rf"p\.jsonl:2: .*{said}") as error:
        read_problems(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answer", "blocks"),
    [
        ("nothing", []),
        ("```\na\n```", ["a\n"]),
        ("```python\na\n```\nthen\n~~~\nb\n~~~", ["a\n", "b\n"]),
        ("````md\n```\na\n```\n````", ["```\na\n```\n"]),
        ("```python\na", ["a\n"]),
        ("```python\na\n```python\nb\n```", ["a\n```python\nb\n"]),
        ("```\n```", ["\n"]),
        ("inline ```code``` here", []),
    ],
)
def test_fenced_blocks_are_found(answer: str, blocks: list[str]) -> None:
    assert fenced(answer) == blocks
