"""Problems of contests as LiveCodeBench publishes them, and its grader's rules, written down once more."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from decimal import Decimal
from typing import Any


def record(
    name: str,
    cases: list[tuple[str, str]],
    *,
    function: str = "",
    starter: str = "",
    packed: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Return a problem whose first case is public."""
    kind = "functional" if function else "stdin"
    tests = [{"input": given, "output": wanted, "testtype": kind} for given, wanted in cases]
    private = json.dumps(tests[1:])
    fields = {
        "question_title": f"Title of {name}",
        "question_content": f"Text of {name}",
        "platform": "atcoder",
        "question_id": name,
        "contest_id": "c",
        "contest_date": "2024-05-06T00:00:00",
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": pack(private) if packed else private,
        "metadata": json.dumps({"func_name": function} if function else {}),
    }
    return fields | changes


def pack(text: object, protocol: int = 4) -> str:
    """Return a text as private tests are published."""
    return pack_bytes(pickle.dumps(text, protocol=protocol))


def pack_bytes(data: bytes) -> str:
    """Return a pickle as private tests are published."""
    return base64.b64encode(zlib.compress(data)).decode()


def official_same_output(printed: str, expected: str) -> bool:
    """The official rule, step by step."""
    ours, theirs = printed.strip().split("\n"), expected.strip().split("\n")
    if len(ours) != len(theirs):
        return False
    for line, other in zip(map(str.strip, ours), map(str.strip, theirs), strict=True):
        if line == other:
            continue
        try:
            numbers = [Decimal(part) for part in line.split()]
            wanted = [Decimal(part) for part in other.split()]
        except ArithmeticError:
            return False
        if numbers != wanted:
            return False
    return True
