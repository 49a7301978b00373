"""What a profile counts."""

from __future__ import annotations

import enum

from coe_native.errors import InputError


class Stats(str, enum.Enum):
    """What a profile counts."""

    ROUTING = "routing"
    """Which experts the router chooses, at which rank and with what weight."""

    CONTRIBUTION = "contribution"
    """Also the activation norms of the chosen experts (OutputNorms)."""


DEFAULT_STATS = Stats.CONTRIBUTION.value

MIN_TOKENS = 16
"""An expert that has seen fewer tokens gets the mean of its layer in an importance matrix."""

STATS = tuple(stats.value for stats in Stats)


def parse_stats(name: str) -> Stats:
    """Return what a name of STATS stands for.

    Raises:
        InputError: It is none of them.
    """
    try:
        return Stats(name)
    except ValueError as error:
        raise InputError(f"there are no statistics {name!r}; choose one of {', '.join(STATS)}") from error
