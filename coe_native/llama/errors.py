"""Errors of the compiled module as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from coe_native.errors import CoeError, InputError


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise the compiled module's errors as InputError or CoeError, which name the model's file."""
    try:
        yield
    except CoeError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        raise CoeError(f"{path}: {error}") from error
