"""The parts in which live tokens are counted."""

from __future__ import annotations

import enum


class Part(enum.IntEnum):
    """What a token belongs to, numbered as the compiled module counts them."""

    PROMPT = 0
    GENERATED = 1
    MASKED = 2
