"""Compare two runs task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coe_native.errors import InputError
from coe_native.evaluation.attempts import Attempt, by_category
from coe_native.evaluation.intervals import Pairs


@dataclass(frozen=True)
class PairedRuns:
    """Two runs on the same tasks.

    Attributes:
        property: What is counted: ``passed`` or ``looping``.
        overall: The pairs of all tasks.
        categories: Those of each category, in the order of `by_category`.
        n_unpaired: Answers in one run only, which are left out.
    """

    property: str
    overall: Pairs
    categories: dict[str, Pairs]
    n_unpaired: int


def pair_runs(
    first: Sequence[Attempt],
    second: Sequence[Attempt],
    places: tuple[str, str] = ("the first run", "the second run"),
) -> PairedRuns:
    """Pair the answers of two runs by task and sample.

    Args:
        first: One run.
        second: The other.
        places: Where they came from, for messages.

    Raises:
        InputError: The runs have no judged task in common, or one has passes and the other loops.
    """
    for name in ("passed", "looping"):
        ours, others = (
            {
                (attempt.task_id, attempt.sample): bool(getattr(attempt, name))
                for attempt in run
                if getattr(attempt, name) is not None
            }
            for run in (first, second)
        )
        if ours and others:
            break
    else:
        raise InputError(
            f"{places[0]} and {places[1]} have not been judged alike: both need results of programs "
            "(--allow-code-execution), or both of loops"
        )
    common = [key for key in ours if key in others]
    if not common:
        raise InputError(f"{places[0]} and {places[1]} have no judged task in common")
    kept = [
        attempt
        for attempt in (*first, *second)
        if (attempt.task_id, attempt.sample) in ours and (attempt.task_id, attempt.sample) in others
    ]

    def count(keys: Sequence[tuple[str, int]]) -> Pairs:
        outcomes = [(ours[key], others[key]) for key in keys]
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return Pairs(*(outcomes.count(kind) for kind in kinds))

    categories = {
        category: count(sorted({(attempt.task_id, attempt.sample) for attempt in attempts}))
        for category, attempts in by_category(kept)
    }
    return PairedRuns(name, count(common), categories, len(ours) + len(others) - 2 * len(common))
