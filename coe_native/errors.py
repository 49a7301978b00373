"""The errors that users meet: one line each, naming the file, what is wrong and what to do."""

from __future__ import annotations

import os
from pathlib import Path


class CoeError(Exception):
    """An operation failed or a check did not hold (exit status 1 on the command line)."""


class InputError(CoeError, ValueError):
    """What was given cannot be used: a file, a mask for another model, an option (exit status 2)."""


def printable(text: str, most: int = 1000) -> str:
    """Text from a file as one line, of `most` characters and some more, that does nothing to a terminal."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def without_directories(text: str, *paths: Path) -> str:
    """Return a message without the directories in which some files are, for somebody who may know only their
    names."""
    for path in paths:
        for directory in (path.parent, path.absolute().parent, path.resolve().parent):
            if str(directory) not in (".", directory.anchor):
                text = text.replace(f"{directory}{os.sep}", "").replace(str(directory), "the directory")
    return text
