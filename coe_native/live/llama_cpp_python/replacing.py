"""Temporary changes to other packages and to the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Replace an attribute while the block runs.

    Args:
        owner: The object or module that has it.
        name: Its name.
        value: Its value in the block.

    Yields:
        Its previous value.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def without_variable(variable: str) -> Iterator[None]:
    """Remove an environment variable while the block runs, so that the server reads no settings from it.

    Args:
        variable: Its name.
    """
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value
