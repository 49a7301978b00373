"""A HumanEval problem."""

from __future__ import annotations

import json

from coe_native.evaluation.problems import Problem

RECORD = {
    "task_id": "Test/0",
    "prompt": "from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def total(numbers: List[int]) -> int:\n    """The sum of all numbers, doubled."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 12\n    assert candidate([]) == 0\n",
    "canonical_solution": "    return double(sum(numbers))\n",
}
"""As published."""

ADD = Problem(**{**RECORD, "test": f"{RECORD['test']}\n\ncheck(total)\n"})


def as_lines(records: list[dict[str, str]]) -> str:
    """Return the text of a file of records."""
    return "".join(json.dumps(record) + "\n" for record in records)
