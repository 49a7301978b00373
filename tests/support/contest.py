"""Problems in LiveCodeBench's format, and its grader's rules, written a second time."""

from __future__ import annotations

import base64
import json
import pickle
import re
import zlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from coe_native.evaluation.contest import ContestProblem, ContestTest

Cases = Sequence[tuple[str, str]]
"""Inputs with the outputs that are expected."""


def case_fields(cases: Cases, kind: str = "stdin") -> list[dict[str, str]]:
    """Return tests as the published files have them."""
    return [{"input": given, "output": expected, "testtype": kind} for given, expected in cases]


def packed(text: object, protocol: int = 4) -> str:
    """Return base64 of zlib of a pickle, as private tests are published."""
    return packed_data(pickle.dumps(text, protocol=protocol))


def packed_data(data: bytes) -> str:
    """Return base64 of zlib of data."""
    return base64.b64encode(zlib.compress(data)).decode()


def contest_record(task_id: str = "own-1", **changes: Any) -> dict[str, Any]:
    """Return a published problem: the sum of two numbers. A field that is changed to None is left out."""
    record = {
        "question_title": "Sum",
        "question_content": "Print the sum of the two numbers.",
        "platform": "own",
        "question_id": task_id,
        "contest_id": "own",
        "contest_date": "2024-03-02T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(case_fields([("1 2\n", "3\n")])),
        "private_test_cases": packed(json.dumps(case_fields([("-5 5\n", "0\n"), ("7 7\n", "14\n")]))),
        "metadata": "{}",
    } | changes
    return {name: value for name, value in record.items() if value is not None}


def method_record(task_id: str = "own-2", **changes: Any) -> dict[str, Any]:
    """Return a published problem that asks for a method."""
    fields = {
        "starter_code": "class Solution:\n    def total(self, numbers: List[int], start: int) -> int:\n        ",
        "public_test_cases": json.dumps(case_fields([("[1, 2]\n3", "6")], "functional")),
        "private_test_cases": packed(json.dumps(case_fields([("[]\n0", "0")], "functional"))),
        "metadata": json.dumps({"func_name": "total"}),
        "difficulty": "hard",
    }
    return contest_record(task_id, **fields | changes)


def contest_lines(records: Sequence[dict[str, Any]]) -> str:
    """Return the text of a file of problems."""
    return "".join(json.dumps(record) + "\n" for record in records)


def contest_problem(cases: Cases, method: str = "") -> ContestProblem:
    """Return a problem with tests. The starter code of a method takes `xs` and `start`."""
    tests = tuple(ContestTest(given, expected, method) for given, expected in cases)
    starter = (
        f"class Solution:\n    def {method}(self, xs: List[int], start: int) -> Any:\n        " if method else ""
    )
    return ContestProblem("own-1", "A question.", starter, "easy", None, method, tests)


def officially_same_output(printed: str, expected: str) -> bool:
    """Return the official grader's verdict on an output: numbers are compared as exact fractions here."""
    ours, theirs = (text.strip().split("\n") for text in (printed, expected))
    if len(ours) != len(theirs):
        return False
    for line, other in zip(ours, theirs, strict=True):
        if line.strip() == other.strip():
            continue
        words, others = line.split(), other.split()
        values = [[_number(word) for word in each] for each in (words, others)]
        if None in values[0] or None in values[1] or values[0] != values[1]:
            return False
    return True


def _number(word: str) -> Fraction | str | None:
    """Return the value of a decimal, the name of an infinity, or None if it is not a number."""
    if re.fullmatch(r"[+-]?inf(inity)?", word, re.IGNORECASE):
        return "-" if word.startswith("-") else "+"
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", word, re.IGNORECASE | re.ASCII):
        return None
    return Fraction(word.rstrip(".").replace(".e", "e").replace(".E", "E"))


def officially_same_value(returned: Any, expected: str) -> bool:
    """Return the official grader's verdict on a method's value."""
    return bool((list(returned) if isinstance(returned, tuple) else returned) == json.loads(expected))
