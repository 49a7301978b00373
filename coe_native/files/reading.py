"""Read a range of a file's bytes, from any thread."""

from __future__ import annotations

import os
import threading
from typing import BinaryIO

from coe_native.errors import InputError

CHUNK = 4 << 20
"""Bytes that a thread reads at once: large enough to be fast, small enough for the CPU's cache."""


_seek_and_read = threading.Lock()


def _read_at(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    if hasattr(os, "pread"):
        data = os.pread(file.fileno(), n_bytes, offset)
        while 0 < len(data) < n_bytes and (
            more := os.pread(file.fileno(), n_bytes - len(data), offset + len(data))
        ):
            data += more
        return data
    with _seek_and_read:
        file.seek(offset)
        return file.read(n_bytes)


def read_exactly(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` bytes of a file, from byte `offset` on.

    Raises:
        InputError: The file ends before that, or the system cannot read it.
    """
    try:
        data = _read_at(file, offset, n_bytes)
    except OSError as error:
        raise InputError(f"{file.name}: cannot be read: {error.strerror or error}") from error
    if len(data) != n_bytes:
        raise InputError(f"{file.name}: ends before byte {offset + n_bytes}; is it still being written?")
    return data
