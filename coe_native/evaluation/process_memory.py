"""The memory and the threads of processes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil


def memory_and_threads(process: psutil.Process) -> tuple[int, int]:
    """Return the bytes of a process's memory and swap, without files, and the number of its threads.

    Memory that several processes share counts for each of them.
    """
    if sys.platform != "linux":
        return process.memory_info().rss, process.num_threads()
    # psutil reads these only by a slow walk over all pages, which a process may also forbid.
    values = _kilobytes(Path(f"/proc/{process.pid}/status"), _MEMORY_FIELDS)
    threads = _kilobytes(Path(f"/proc/{process.pid}/status"), ("Threads",))["Threads"]
    if not values:  # the first thread has ended, and others still run
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        values = max((_kilobytes(task / "status", _MEMORY_FIELDS) for task in tasks), key=len, default={})
    return 1024 * sum(values.values()), threads


def proportional_memory(process: psutil.Process) -> tuple[int, int]:
    """Return the same, with shared memory divided among the processes that share it.

    This takes longer, and a process can forbid it.
    """
    memory, threads = memory_and_threads(process)
    with contextlib.suppress(OSError):
        values = _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup"), ("Pss_Anon", "Pss_Shmem", "SwapPss"))
        if len(values) == 3:
            memory = 1024 * sum(values.values())
    return memory, threads


_MEMORY_FIELDS = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")


def _kilobytes(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Return those of the named fields that a file of /proc has."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    fields = (line.partition(":") for line in lines)
    return {name: int(value.split()[0]) for name, _, value in fields if name in names}
