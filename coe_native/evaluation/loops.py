"""Loops: answers that repeat themselves until they are cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from coe_native.evaluation.attempts import Attempt
from coe_native.evaluation.intervals import Share

COPIES = 3
"""Copies of the same piece that an answer must end with."""

_MOST_TAIL = 1 << 16
"""Characters of the end of an answer that are looked at."""


@dataclass(frozen=True)
class Loop:
    """A piece of text that an answer repeats at its end.

    Attributes:
        piece: What is repeated.
        n_characters: Characters of all copies together; the last may be cut off.
    """

    piece: str
    n_characters: int


def find_loop(text: str) -> Loop | None:
    """Return the loop that a text ends with, or None.

    A text ends in a loop if its last characters are at least three copies of the same piece, the last of which
    may be cut off. Together they have at least 40 characters, or 80 if the piece has no letter: human text has
    rows of dashes. The shortest such piece is returned. Blanks at the end are looked at both with and without.
    """
    tail = text[-_MOST_TAIL:]
    return _loop_at_end(tail) or (_loop_at_end(tail.rstrip()) if tail[-1:].isspace() else None)


def _loop_at_end(text: str) -> Loop | None:
    backwards = text[::-1]
    for period, n_more in enumerate(_matches(backwards)):
        length = period + n_more
        if period and length >= COPIES * period and length >= 40:
            piece = backwards[:period][::-1]
            if length >= 80 or any(character.isalpha() for character in piece):
                return Loop(piece, length)
    return None


def _matches(text: str) -> list[int]:
    """Return how many characters from each position on equal those from the start on (Gusfield's Z, 1997)."""
    found = [0] * len(text)
    left = right = 0
    for at in range(1, len(text)):
        n = min(right - at, found[at - left]) if at < right else 0
        while at + n < len(text) and text[n] == text[at + n]:
            n += 1
        found[at] = n
        if at + n > right:
            left, right = at, at + n
    return found


def with_loop(attempt: Attempt) -> Attempt:
    """Return an attempt with what `find_loop` says about it."""
    loop = find_loop(attempt.completion)
    return msgspec.structs.replace(
        attempt, looping=loop is not None, period=None if loop is None else len(loop.piece)
    )


@dataclass(frozen=True)
class LoopRates:
    """How answers end.

    Attributes:
        looping: Those that end in a loop.
        unfinished: Those that had as many tokens as they were allowed, looping or not.
        truncated: Those that filled the context before.
        tokens: Tokens of all answers.
    """

    looping: Share
    unfinished: Share
    truncated: Share
    tokens: int


def loop_rates(attempts: Sequence[Attempt]) -> LoopRates:
    """Count how answers end. Answers that do not say why they ended count for loops only."""
    known = [attempt for attempt in attempts if attempt.ended]
    return LoopRates(
        looping=Share(sum(bool(attempt.looping) for attempt in attempts), len(attempts)),
        unfinished=Share(sum(attempt.ended == "length" for attempt in known), len(known)),
        truncated=Share(sum(attempt.ended == "context" for attempt in known), len(known)),
        tokens=sum(attempt.tokens or 0 for attempt in attempts),
    )


def most_looping(attempts: Sequence[Attempt]) -> list[tuple[str, int, int]]:
    """Return the tasks with loops, with their looping answers and all answers; the most frequent come first."""
    counts: dict[str, list[int]] = {}
    for attempt in attempts:
        count = counts.setdefault(attempt.task_id, [0, 0])
        count[0] += bool(attempt.looping)
        count[1] += 1
    found = [(task_id, looping, total) for task_id, (looping, total) in counts.items() if looping]
    return sorted(found, key=lambda each: (-each[1] / each[2], -each[1]))
