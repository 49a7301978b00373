"""Other processes of this interpreter, for what may end, or hang, whoever runs it."""

from __future__ import annotations

import sys


def python_line(code: str, *arguments: str) -> list[str]:
    """The command that runs some code. Unlike Python by itself it imports nothing from the current directory,
    which may be anybody's."""
    return [sys.executable, "-c", f"import sys; sys.path[:] = filter(None, sys.path); {code}", *arguments]
