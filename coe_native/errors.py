"""The errors that users meet: one line each, naming the file, what is wrong and what to do."""

from __future__ import annotations


class CoeError(Exception):
    """An operation failed or a check did not hold (exit status 1 on the command line)."""


class InputError(CoeError, ValueError):
    """What was given cannot be used: a file, a mask for another model, an option (exit status 2)."""


def printable(text: str, most: int = 1000) -> str:
    """Text from a file as one line, of `most` characters and some more, that does nothing to a terminal."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."
