"""Copy bytes from one file to another, inside the kernel if possible."""

from __future__ import annotations

import os
from typing import BinaryIO

from coe_native.files.reading import CHUNK, read_exactly


def copy_range(source: BinaryIO, offset: int, n_bytes: int, target: BinaryIO) -> None:
    """Copy bytes of a file to the current position of another one.

    Args:
        source: The file to read.
        offset: The first byte.
        n_bytes: Number of bytes.
        target: The file to write.

    Raises:
        InputError: `source` ends before that, or cannot be read.
    """
    done = _copy_in_kernel(source, offset, n_bytes, target)
    while done < n_bytes:
        data = read_exactly(source, offset + done, min(CHUNK, n_bytes - done))
        target.write(data)
        done += len(data)


def _copy_in_kernel(source: BinaryIO, offset: int, n_bytes: int, target: BinaryIO) -> int:
    """Copy bytes inside the kernel, and return how many.

    These are fewer than `n_bytes` if the system or a file system does not support it, or the source ends.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    target.flush()
    end, done = target.tell(), 0
    while done < n_bytes:
        try:
            copied = os.copy_file_range(
                source.fileno(), target.fileno(), n_bytes - done, offset + done, end + done
            )
        except OSError:  # reading and writing will report what is wrong
            break
        if copied == 0:
            break
        done += copied
    target.seek(end + done)
    return done
