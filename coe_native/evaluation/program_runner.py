"""Run one program under the system's limits.

``sandbox.py`` starts this file as a script, with only Python's standard library available.
"""

from __future__ import annotations

import json
import math
import os
import sys
import types
from typing import Any

_LONGEST_REASON = 2000


def main() -> None:
    """Print ``ready``, read a task from standard input, run it, and print whether it passed."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    print("ready", file=answer, flush=True)
    task = json.loads(sys.stdin.buffer.read())
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)

    def finish(what: str) -> None:
        print(what, file=answer, flush=True)
        os._exit(0)

    def fail(reason: str) -> None:
        finish(f"failed-{task['proof']} {' '.join(reason.split())[:_LONGEST_REASON]}")

    try:
        _limit(task["limits"])
        # The program runs as the main module, where pickle, for example, looks for its classes.
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(task["program"], "<program>", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        fail("ended itself")
    except MemoryError:
        fail("took more memory than it may")
    except BaseException as error:  # any program may raise anything
        fail(f"{type(error).__name__}: {error}")
    finish(f"passed {task['proof']}")


def _limit(limits: dict[str, Any]) -> None:
    """Set the limits of this process and of all that it starts. Windows has no such limits."""
    try:
        import resource
        import signal
    except ImportError:
        return
    # The process that watches the program must get CPU time, whatever the program does.
    os.nice(5)
    for what, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, math.ceil(limits["seconds"]) + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        # With 0, the kernel would still send the memory to the program in /proc/sys/kernel/core_pattern.
        (resource.RLIMIT_CORE, 1),
    ):
        if most is None:
            continue
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (least, least))
        except ValueError:
            if sys.platform == "linux":  # macOS does not support a memory limit
                raise
    # Ends the program if the process that watches it was killed.
    signal.alarm(math.ceil(limits["seconds"]) + 5)


if __name__ == "__main__":
    main()
