"""How the comparison of two runs is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coe_native.cli.output import say
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.evaluation.intervals import Pairs


def pairs_as_json(pairs: Pairs) -> dict[str, Any]:
    """Return a comparison for JSON. The difference is the second run's share less the first's."""
    return {
        "total": pairs.total,
        "both": pairs.both,
        "only_a": pairs.first,
        "only_b": pairs.second,
        "neither": pairs.neither,
        "difference": pairs.difference,
        "interval": list(pairs.interval),
        "p_value": pairs.p_value,
        "needed": None if pairs.is_telling else pairs.needed,
    }


def difference_as_text(pairs: Pairs) -> str:
    """Return the difference in points, with its interval."""
    low, high = pairs.interval
    return f"{100 * pairs.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def say_what_pairs_tell(pairs: Pairs, what: str) -> None:
    """Say whether a difference can be told from chance, and if not, how many answers would be needed.

    Args:
        pairs: The comparison.
        what: What differs, such as ``pass@1``.
    """
    change = f"{what} changes by {difference_as_text(pairs)} points, 95 % interval; p = {pairs.p_value:.2g}"
    if pairs.is_telling:
        say(change)
    elif pairs.needed is None:
        say(f"{change}: {counted(pairs.total, 'pair')} without a difference may miss one within that interval")
    else:
        say(
            f"{change}: too few to tell this difference from chance ({counted(pairs.total, 'pair')}); about "
            f"{pairs.needed} would be needed"
        )
