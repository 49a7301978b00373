"""Holes in files: zeros that take neither space nor time to write."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import BinaryIO

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


def write_zeros(file: BinaryIO, offset: int, n_bytes: int) -> None:
    """Overwrite a part of an open file with zeros, as a hole if the file system supports holes.

    Args:
        file: The file, open for writing.
        offset: The first byte.
        n_bytes: Number of bytes.
    """
    file.flush()
    if not _punch(file.fileno(), offset, n_bytes):
        file.seek(offset)
        file.write(bytes(n_bytes))


def bytes_on_disk(path: Path) -> int:
    """Return the bytes that a file takes on the disk, without holes; its size if the system does not tell."""
    status = path.stat()
    return 512 * status.st_blocks if hasattr(status, "st_blocks") else status.st_size


def _punch(descriptor: int, offset: int, n_bytes: int) -> bool:
    fallocate = _fallocate()
    return fallocate is not None and fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, n_bytes) == 0


@cache
def _fallocate() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
