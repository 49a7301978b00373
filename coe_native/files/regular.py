"""Open regular files only. A pipe would block until it has a writer, and some devices never end."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from coe_native.errors import InputError

_LFS = b"version https://git-lfs.github.com/spec/"


class LfsPointerError(InputError):
    """A small file that stands for a large one."""


def check_no_pointer(start: bytes, place: str | Path) -> None:
    """Check that a file is not a pointer of Git LFS, by its first bytes.

    Raises:
        LfsPointerError: It is one.
    """
    if start.startswith(_LFS):
        raise LfsPointerError(f"{place}: is a Git LFS pointer, not the file itself; run `git lfs pull`")


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: It is a directory, a pipe, a device, a socket, or a pointer of Git LFS.
        OSError: The system cannot open it.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a directory; name a file") from error
    try:
        check_regular(path, file)
        check_no_pointer(file.read(len(_LFS)), path)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def unchanged_since_now(path: Path) -> Callable[[], None]:
    """Return a function that raises InputError if a file is another one than now, or has changed."""
    known = _state(path)

    def check() -> None:
        if _state(path) != known:
            raise InputError(f"{path}: has changed since it was first read; run the command again")

    return check


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


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
