"""Open regular files only. A pipe would block until it has a writer, and some devices never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from coe_native.errors import InputError


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: It is a directory, a pipe, a device or a socket.
        OSError: The system cannot open it.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; name a file") from error
    try:
        check_regular(path, file)
    except InputError:
        file.close()
        raise
    return file


def check_regular(path: str | Path, file: BinaryIO) -> None:
    """Check that an opened file is a regular one.

    Raises:
        InputError: It is a pipe, a device or a socket.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise InputError(f"{path}: is not a regular file; save its contents to a file first, or pipe text to -c -")


def read_regular(path: str | Path, most_bytes: int) -> bytes:
    """Return the contents of a file.

    Args:
        path: The file.
        most_bytes: The largest size that is read.

    Raises:
        InputError: It has more bytes than that, or is not a regular file.
        OSError: The system cannot read it.
    """
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise InputError(f"{path}: has more than {most_bytes >> 20} MB")
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
