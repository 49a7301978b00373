"""The parts in which live tokens are counted."""

from __future__ import annotations

import enum


class Part(enum.IntEnum):
    """The part of the counts that a token belongs to, numbered as in the compiled module."""

    PROMPT = 0
    GENERATED = 1
    MASKED = 2
