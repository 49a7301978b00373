"""Telling the system what will be read, so that it is in memory by then."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import BinaryIO

_AHEAD = 64 << 20
_STEP = 512 << 10
"""Bytes that Linux takes of one such wish, on devices of small requests."""

Range = tuple[BinaryIO, int, int]
"""A file, an offset in it, and a number of bytes."""


class Prefetch:
    """Ranges of files that will be read in this order. The gaps between kept experts end the system's own reading
    ahead at each of them; on a disk that answers many wishes at once, this is several times as fast."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges = iter(ranges if hasattr(os, "posix_fadvise") else ())
        self._wanted = _AHEAD
        self._told = 0

    def reading(self, n_bytes: int) -> None:
        """To be called when the next `n_bytes` bytes of the ranges are about to be read."""
        self._wanted += n_bytes
        while self._told < self._wanted:
            file, offset, size = next(self._ranges, (None, 0, 0))
            if file is None:
                return
            for start in range(offset, offset + size, _STEP):
                wish = min(_STEP, offset + size - start)
                with contextlib.suppress(OSError):  # reading will say what is wrong
                    os.posix_fadvise(file.fileno(), start, wish, os.POSIX_FADV_WILLNEED)
            self._told += size
