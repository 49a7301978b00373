"""A HumanEval problem."""

from __future__ import annotations

import json

from coe_native.evaluation.problems import Problem

ADD = Problem(
    "Test/0",
    "from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def total(numbers: List[int]) -> int:\n    """The sum of all numbers, doubled."""\n',
    "total",
    "def check(candidate):\n    assert candidate([1, 2, 3]) == 12\n    assert candidate([]) == 0\n",
    "    return double(sum(numbers))\n",
)


def as_lines(problems: list[Problem]) -> str:
    """Return the text of a file of problems."""
    return "".join(
        json.dumps(
            {
                "task_id": problem.task_id,
                "prompt": problem.prompt,
                "entry_point": problem.entry_point,
                "test": problem.test,
                "canonical_solution": problem.canonical_solution,
            }
        )
        + "\n"
        for problem in problems
    )
