"""How many threads to use where nobody says."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may run on: fewer than the machine's in a container or under taskset."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checking_threads() -> int:
    """Threads that look at a file's bytes: enough for a fast disk, and each holds a few megabytes."""
    return min(available_cores(), 8)
