"""A HumanEval problem, and a writer of answers that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from coe_native.evaluation.problems import Problem
from coe_native.evaluation.tasks import Task
from coe_native.llama.generation import Generation

RECORD = {
    "task_id": "Test/0",
    "prompt": "from typing import List\n\n\ndef double(x):\n    return 2 * x\n\n\n"
    'def total(numbers: List[int]) -> int:\n    """The sum of all numbers, doubled."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 12\n    assert candidate([]) == 0\n",
    "canonical_solution": "    return double(sum(numbers))\n",
}
"""As published."""

CALL = "\n\ncheck(total)\n"

ADD = Problem(**{**RECORD, "test": f"{RECORD['test']}{CALL}"})


def as_lines(problems: Sequence[Problem]) -> str:
    """Return the text of a file of problems in HumanEval's format."""
    records = (asdict(problem) | {"test": problem.test.removesuffix(CALL)} for problem in problems)
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass
class Scripted:
    """Writes the answers that it is given, in place of a model.

    Attributes:
        answers: The answer to each task; KeyboardInterrupt: the user presses Ctrl-C instead.
        samples: Answers to each task.
        asked: The tasks and samples that were asked for.
    """

    answers: Mapping[str, str | type[KeyboardInterrupt]]
    samples: int = 1
    asked: list[tuple[str, int]] = field(default_factory=list)

    def write(
        self, wanted: Sequence[tuple[Task, int]], progress: Callable[[int], None] = lambda n_tokens: None
    ) -> Iterator[tuple[Task, int, Generation]]:
        """Yield each answer, as `Writer.write` does."""
        for number, (task, sample) in enumerate(wanted, 1):
            self.asked.append((task.task_id, sample))
            answer = self.answers[task.task_id]
            if not isinstance(answer, str):
                raise KeyboardInterrupt
            progress(7 * number)
            yield task, sample, Generation(answer, 7, "end")
