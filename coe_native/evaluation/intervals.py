"""Shares and their differences, with intervals and tests for few and for paired observations."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""

_Z_POWER = 0.8416212335729143
"""Quantile for a power of 80 %."""


@dataclass(frozen=True)
class Share:
    """How many of some answers have a property.

    Attributes:
        count: Those that have it.
        total: All of them.
    """

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """Return the share, or None if there are no answers."""
        return self.count / self.total if self.total else None

    @property
    def precision(self) -> float:
        """Return half the width of the interval."""
        low, high = self.interval
        return (high - low) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of 95 % (Wilson, 1927)."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.count / self.total
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        # Rounding must not leave a share outside of its own interval.
        return (0.0 if self.count == 0 else middle - half), (1.0 if self.count == n else middle + half)

    def needed(self, precision: float) -> int:
        """Return about how many answers an interval of ``± precision`` needs, if the share stays the same."""
        p = (self.count + _Z**2 / 2) / (self.total + _Z**2)  # the middle of the interval
        return math.ceil(_Z**2 * p * (1 - p) / precision**2)


@dataclass(frozen=True)
class Pairs:
    """What two runs did with the same tasks.

    Attributes:
        both: Tasks where both have the property.
        first: Only the first run.
        second: Only the second run.
        neither: None of them.
    """

    both: int
    first: int
    second: int
    neither: int

    @property
    def total(self) -> int:
        """Return the number of tasks."""
        return self.both + self.first + self.second + self.neither

    @property
    def shares(self) -> tuple[Share, Share]:
        """Return the share of each run."""
        return Share(self.both + self.first, self.total), Share(self.both + self.second, self.total)

    @property
    def difference(self) -> float:
        """Return the second run's share less the first's."""
        return (self.second - self.first) / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the interval of 95 % of the difference (Newcombe, 1998, method 10)."""
        if not self.total:
            return -1.0, 1.0
        one, two = self.shares
        (low_1, high_1), (low_2, high_2) = one.interval, two.interval
        p_1, p_2 = one.count / one.total, two.count / two.total
        product = one.count * two.count * (one.total - one.count) * (two.total - two.count)
        cross: float = self.both * self.neither - self.first * self.second
        if cross > 0:
            cross = max(cross - self.total / 2, 0.0)
        phi = cross / math.sqrt(product) if product else 0.0

        def spread(of_1: float, of_2: float) -> float:
            return math.sqrt(max(of_1 * of_1 - 2 * phi * of_1 * of_2 + of_2 * of_2, 0.0))

        return (
            max(-1.0, self.difference - spread(high_1 - p_1, p_2 - low_2)),
            min(1.0, self.difference + spread(p_1 - low_1, high_2 - p_2)),
        )

    @property
    def p_value(self) -> float:
        """Return the two-sided p-value that both runs are equally good (exact test of McNemar, 1947)."""
        n, k = self.first + self.second, min(self.first, self.second)
        return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / (1 << n))

    @property
    def is_telling(self) -> bool:
        """Return whether the difference can be told from chance, by the exact test."""
        return self.p_value < 0.05

    @property
    def needed(self) -> int | None:
        """Return the tasks that it takes to see the difference in four of five runs; None if it is zero.

        The formula is Connor's (1987), with the share of tasks on which the runs differ as it is here. It is an
        approximation for many tasks, so where the difference cannot be told yet, that is more than there are.
        """
        if not self.difference:
            return None
        differing, d = (self.first + self.second) / self.total, abs(self.difference)
        root = _Z * math.sqrt(differing) + _Z_POWER * math.sqrt(max(differing - d**2, 0.0))
        needed = math.ceil((root / d) ** 2)
        return needed if self.is_telling else max(needed, self.total + 1)
