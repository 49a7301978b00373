"""Run one program under the system's own limits. ``sandbox.py`` starts this file as a script, with nothing but
Python's standard library around it."""

from __future__ import annotations

import json
import math
import os
import sys
import types
from typing import Any

_MOST_SAID = 2000


def main() -> None:
    """Say ``ready`` on standard output, read a task from standard input, run it, and say whether it passed."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    print("ready", file=answer, flush=True)
    task = json.loads(sys.stdin.buffer.read())
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)

    def finish(what: str) -> None:
        print(what, file=answer, flush=True)
        os._exit(0)

    def fail(reason: str) -> None:
        finish(f"failed-{task['proof']} {' '.join(reason.split())[:_MOST_SAID]}")

    try:
        _limit(task["limits"])
        # As if it was started by itself: pickle, for one, looks for its classes there.
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
    """Set the limits of this process and of each that it starts. Windows has none of them."""
    try:
        import resource
        import signal
    except ImportError:
        return
    # Whatever a program does, the process that watches it must get its turn.
    os.nice(5)
    for what, most in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, math.ceil(limits["seconds"]) + 1),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        # With 0 the kernel would still hand the memory to the program that /proc/sys/kernel/core_pattern names.
        (resource.RLIMIT_CORE, 1),
    ):
        if most is None:
            continue
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (least, least))
        except ValueError:
            if sys.platform == "linux":  # macOS takes no limit of memory
                raise
    # For a program whose watcher was killed.
    signal.alarm(math.ceil(limits["seconds"]) + 5)


if __name__ == "__main__":
    main()
