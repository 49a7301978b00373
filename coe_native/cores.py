"""Default numbers of threads."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of cores that this process may run on.

    In a container or under taskset it may be smaller than the machine's.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_MEMORY = 128 << 20
"""Bytes that all checking threads may hold together."""


def checking_threads(n_bytes: int) -> int:
    """Return the number of threads that check a file's bytes.

    It is enough for a fast disk, and limited so that the threads together take little memory.

    Args:
        n_bytes: Bytes that each thread holds.
    """
    return max(1, min(available_cores(), 8, _MEMORY // max(n_bytes, 1)))
