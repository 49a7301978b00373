"""Two runs, compared task by task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coe_native as coe
from coe_native.evaluation.attempts import Attempt, by_category
from coe_native.evaluation.intervals import Pairs
from coe_native.evaluation.paired import pair_runs


def run(outcomes: str, category: str = "") -> list[Attempt]:
    """Return a run: for each task, ``+`` passed, ``-`` failed, ``?`` not judged, blank: not asked."""
    passed = {"+": True, "-": False, "?": None}
    return [
        Attempt(str(number), "", category=category, passed=passed[outcome])
        for number, outcome in enumerate(outcomes)
        if outcome != " "
    ]


def test_tasks_are_counted_by_what_both_runs_did() -> None:
    paired = pair_runs(run("+++---"), run("++-+--"))
    assert paired.overall == Pairs(both=2, first=1, second=1, neither=2)
    assert (paired.property, paired.n_unpaired) == ("passed", 0)


@given(st.text("+-? ", min_size=1, max_size=12), st.text("+-? ", min_size=1, max_size=12))
def test_counts_are_those_of_a_plain_loop(first: str, second: str) -> None:
    judged = [(a, b) for a, b in zip(first, second, strict=False) if a in "+-" and b in "+-"]
    if not judged:
        with pytest.raises(coe.InputError):
            pair_runs(run(first), run(second))
        return
    paired = pair_runs(run(first), run(second))
    counts = [judged.count(kind) for kind in (("+", "+"), ("+", "-"), ("-", "+"), ("-", "-"))]
    assert paired.overall == Pairs(*counts)
    n_judged = sum(outcome in "+-" for outcome in first + second)
    assert paired.n_unpaired == n_judged - 2 * len(judged)


def test_the_order_of_a_file_does_not_matter() -> None:
    first, second = run("+-+-"), run("++--")
    assert pair_runs(first, second[::-1]) == pair_runs(first, second)


def test_samples_are_paired_by_number() -> None:
    first = [Attempt("a", "", sample=number, passed=number == 0) for number in range(3)]
    second = [Attempt("a", "", sample=number, passed=number == 2) for number in (2, 1)]
    paired = pair_runs(first, second)
    assert paired.overall == Pairs(both=0, first=0, second=1, neither=1)
    assert paired.n_unpaired == 1


def test_categories_have_pairs_of_their_own_in_order_of_difficulty() -> None:
    first = [Attempt(str(n), "", category=name, passed=True) for n, name in enumerate(("hard", "easy", "x", ""))]
    second = [
        Attempt(str(n), "", category=name, passed=n == 1) for n, name in enumerate(("hard", "easy", "x", ""))
    ]
    paired = pair_runs(first, second)
    assert list(paired.categories) == ["easy", "hard", "x"]
    assert paired.categories["easy"] == Pairs(1, 0, 0, 0)
    assert paired.categories["hard"] == Pairs(0, 1, 0, 0)
    assert paired.overall.total == 4
    assert [name for name, _ in by_category(first)] == ["easy", "hard", "x"]


def test_loops_are_compared_where_programs_were_not_judged() -> None:
    first = [Attempt("a", "", looping=True), Attempt("b", "", looping=False)]
    second = [Attempt("a", "", looping=False), Attempt("b", "", looping=False)]
    paired = pair_runs(first, second)
    assert (paired.property, paired.overall) == ("looping", Pairs(0, 1, 0, 1))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (run("??"), run("+-"), "judged"),
        (run("+"), [Attempt("0", "", looping=True)], "judged"),
        (run("+ "), run(" +"), "common"),
        ([], [], "judged"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(first: list[Attempt], second: list[Attempt], said: str) -> None:
    with pytest.raises(coe.InputError, match=rf"one\.jsonl.*{said}"):
        pair_runs(first, second, ("one.jsonl", "two.jsonl"))
