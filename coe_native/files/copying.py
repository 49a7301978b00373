"""Bytes from one file into another, by the system itself where it can: no copy through this process."""

from __future__ import annotations

import os
from typing import BinaryIO

from coe_native.files.reading import CHUNK, read_exactly


def copy_range(source: BinaryIO, offset: int, n_bytes: int, target: BinaryIO) -> None:
    """Appends `n_bytes` bytes from `offset` on to `target`. Raises InputError where `source` ends before."""
    done = _by_the_system(source, offset, n_bytes, target)
    while done < n_bytes:
        data = read_exactly(source, offset + done, min(CHUNK, n_bytes - done))
        target.write(data)
        done += len(data)


def _by_the_system(source: BinaryIO, offset: int, n_bytes: int, target: BinaryIO) -> int:
    """Bytes copied so: all, or fewer where the system or one of the file systems can't, or the source ends."""
    if not hasattr(os, "copy_file_range"):
        return 0
    target.flush()
    end, done = target.tell(), 0
    while done < n_bytes:
        try:
            copied = os.copy_file_range(
                source.fileno(), target.fileno(), n_bytes - done, offset + done, end + done
            )
        except OSError:  # whatever it was, reading and writing will say so
            break
        if copied == 0:
            break
        done += copied
    target.seek(end + done)
    return done
