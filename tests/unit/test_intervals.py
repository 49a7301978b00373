"""Intervals of shares and of paired differences, against SciPy, exact fractions and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_native.evaluation.intervals import Pairs, Share

SHARES = st.integers(1, 3000).flatmap(lambda n: st.builds(Share, st.integers(0, n), st.just(n)))
PAIRS = st.builds(Pairs, *[st.integers(0, 200)] * 4).filter(lambda pairs: pairs.total > 0)


@given(SHARES)
def test_the_interval_of_a_share_is_wilsons(share: Share) -> None:
    """At its ends, the share lies exactly 1.96 standard errors from the observed one."""
    z = 1.959963984540054
    low, high = share.interval
    observed = share.count / share.total
    assert 0 <= low <= observed <= high <= 1
    for end, outside in ((low, share.count == 0), (high, share.count == share.total)):
        if not outside:
            error = z * math.sqrt(end * (1 - end) / share.total)
            assert abs(observed - end) == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_the_interval_of_a_share_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count, total in ((0, 1), (1, 1), (0, 40), (1, 40), (20, 40), (39, 40), (40, 40), (117, 1055)):
        wanted = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
        assert Share(count, total).interval == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@given(SHARES)
def test_the_interval_of_the_opposite_share_is_mirrored(share: Share) -> None:
    low, high = Share(share.total - share.count, share.total).interval
    assert share.interval == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_a_share_of_no_answers_is_unknown() -> None:
    share = Share(0, 0)
    assert share.value is None
    assert share.interval == (0.0, 1.0)
    assert share.precision == 0.5
    assert share.needed(0.05) > 300


@pytest.mark.parametrize("share", [Share(1, 20), Share(10, 20), Share(0, 20), Share(30, 200)])
@pytest.mark.parametrize("precision", [0.01, 0.05])
def test_as_many_answers_as_are_needed_give_the_precision(share: Share, precision: float) -> None:
    if share.precision <= precision:
        return
    needed = share.needed(precision)
    assert needed > share.total
    assert share.value is not None
    middle = sum(share.interval) / 2  # a share of none stays no more likely than this
    assert Share(round(middle * needed), needed).precision == pytest.approx(precision, rel=0.03)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_p_value_is_that_of_fair_coins(first: int, second: int) -> None:
    n = first + second
    as_far = [k for k in range(n + 1) if abs(2 * k - n) >= abs(first - second)]
    exact = sum(Fraction(math.comb(n, k), 2**n) for k in as_far)
    assert Pairs(3, first, second, 4).p_value == pytest.approx(float(exact), rel=1e-12)


def test_the_p_value_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((0, 1), (0, 6), (1, 9), (5, 5), (30, 60), (400, 500), (2000, 2000)):
        wanted = stats.binomtest(first, first + second, 0.5).pvalue
        assert Pairs(1, first, second, 1).p_value == pytest.approx(wanted, rel=1e-9)
    assert Pairs(5, 0, 0, 5).p_value == 1


@pytest.mark.parametrize(
    ("pairs", "interval"),
    [
        # Newcombe (1998), table II, method 10, of the first run less the second.
        (Pairs(36, 12, 2, 0), (0.0569, 0.3404)),
        (Pairs(0, 12, 2, 36), (0.0569, 0.3404)),
    ],
)
def test_the_interval_of_a_difference_is_the_published_one(pairs: Pairs, interval: tuple[float, float]) -> None:
    low, high = pairs.interval
    assert (-high, -low) == pytest.approx(interval, abs=5e-5)


@given(PAIRS)
def test_the_interval_of_a_difference_holds_it(pairs: Pairs) -> None:
    low, high = pairs.interval
    assert -1 <= low <= pairs.difference <= high <= 1
    one, two = pairs.shares
    assert one.value is not None
    assert two.value is not None
    assert two.value - one.value == pytest.approx(pairs.difference, abs=1e-12)
    if not pairs.both and not pairs.first and not pairs.neither:
        assert high == 1


@given(PAIRS)
def test_exchanged_runs_give_the_opposite_difference(pairs: Pairs) -> None:
    exchanged = Pairs(pairs.both, pairs.second, pairs.first, pairs.neither)
    low, high = exchanged.interval
    assert pairs.interval == pytest.approx((-high, -low), abs=1e-12)
    assert exchanged.p_value == pairs.p_value
    assert exchanged.needed == pairs.needed


@given(PAIRS)
def test_the_opposite_property_gives_the_opposite_difference(pairs: Pairs) -> None:
    opposite = Pairs(pairs.neither, pairs.second, pairs.first, pairs.both)
    low, high = opposite.interval
    assert pairs.interval == pytest.approx((-high, -low), abs=1e-12)


@given(PAIRS)
def test_more_tasks_are_needed_than_there_are_if_a_difference_cannot_be_told(pairs: Pairs) -> None:
    if pairs.needed is None:
        assert pairs.first == pairs.second
    elif not pairs.is_telling:
        assert pairs.needed > pairs.total


def test_no_tasks_tell_nothing() -> None:
    pairs = Pairs(0, 0, 0, 0)
    assert pairs.interval == (-1.0, 1.0)
    assert (pairs.difference, pairs.p_value, pairs.is_telling, pairs.needed) == (0.0, 1.0, False, None)


@pytest.mark.parametrize("chances", [(0.4, 0.1, 0.05, 0.45), (0.7, 0.05, 0.05, 0.2), (0.02, 0.01, 0.03, 0.94)])
def test_nineteen_of_twenty_intervals_hold_the_true_difference(chances: tuple[float, ...]) -> None:
    """Newcombe's interval is conservative where runs agree on most tasks."""
    drawn = np.random.default_rng(1).multinomial(120, chances, 2000)
    true = chances[2] - chances[1]
    intervals = [Pairs(*map(int, counts)).interval for counts in drawn]
    held = sum(low <= true <= high for low, high in intervals) / len(intervals)
    assert 0.935 < held < 0.995


def test_the_tasks_that_are_needed_show_the_difference_in_four_of_five_runs() -> None:
    seen = Pairs(50, 6, 10, 34)
    assert not seen.is_telling
    assert seen.needed is not None
    chances = [count / seen.total for count in (seen.both, seen.first, seen.second, seen.neither)]
    drawn = np.random.default_rng(2).multinomial(seen.needed, chances, 1000)
    telling = sum(Pairs(*map(int, counts)).is_telling for counts in drawn) / len(drawn)
    assert 0.72 < telling < 0.88
