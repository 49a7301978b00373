"""How many threads to use where nobody says."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may run on: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_MEMORY = 128 << 20


def checking_threads(n_bytes: int) -> int:
    """Threads that look at a file's bytes, each holding `n_bytes` of them: enough for a fast disk, and not so many
    that they take much memory together."""
    return max(1, min(available_cores(), 8, _MEMORY // max(n_bytes, 1)))
