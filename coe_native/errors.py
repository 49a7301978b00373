"""The errors that users see: one line each, with the file, what is wrong and what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path


class CoeError(Exception):
    """A failed operation, or a check that did not pass (exit status 1 on the command line)."""


class InputError(CoeError, ValueError):
    """An input that cannot be used: a file, a mask for another model, an option (exit status 2)."""


def printable(text: str, most: int = 1000) -> str:
    """Return text from a file as one line that cannot control a terminal.

    Args:
        text: The text.
        most: Characters that are shown. Escapes for unprintable ones may make the line longer.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return shown if len(text) <= most else f"{shown}..."


def without_directories(text: str, *paths: Path) -> str:
    """Return a message without the directories of some files.

    For readers who may know the files' names only.
    """
    for path in paths:
        for directory in (path.parent, path.absolute().parent, path.resolve().parent):
            if str(directory) not in (".", directory.anchor):
                whole = rf"(?<![\w./-]){re.escape(str(directory))}"
                text = re.sub(rf"{whole}{re.escape(os.sep)}", "", text)
                if directory.is_absolute():
                    text = re.sub(rf"{whole}(?![\w.-])", "the directory", text)
    return text
