"""Run one program under the system's limits: once, or once for each of several tests.

``sandbox.py`` starts this file as a script, with only Python's standard library available.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import types
from typing import IO, Any

_LONGEST_REASON = 2000

_POLL_SECONDS = 0.002

_MOST_DIGITS = 50_000
"""Digits of a number that a test's program may print and read."""


def main() -> None:
    """Print ``ready``, read a task from standard input, run it, and print its result.

    A task without tests passes when its last statement was executed. Of one with tests, the outputs of each test
    are printed, and the reader decides: what is expected is never in here.
    """
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
        code = compile(task["program"], "<program>", "exec", dont_inherit=True)
        if "tests" not in task:
            exec(code, _main_module().__dict__)
        for number, test in enumerate(task.get("tests", ())):
            result = _run_test(code, test, task, answer)
            print(f"test-{task['proof']} {json.dumps([number, result])}", file=answer, flush=True)
    except SystemExit:
        fail("ended itself")
    except MemoryError:
        fail("took more memory than it may")
    except BaseException as error:  # any program may raise anything
        fail(f"{type(error).__name__}: {error}")
    finish(f"passed {task['proof']}")


def _main_module() -> types.ModuleType:
    """Return a new main module, where pickle, for example, looks for a program's classes."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    return module


def _run_test(code: types.CodeType, test: dict[str, Any], task: dict[str, Any], answer: IO[str]) -> dict[str, Any]:
    """Run the program for one test in a process of its own.

    Returns:
        ``error``: why it failed by itself, or null; ``output``: what it printed, or the encoded value that its
        function returned.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as printed,
        tempfile.TemporaryFile() as returned,
        tempfile.TemporaryFile() as failure,
    ):
        given.write(test["input"].encode("utf-8", "surrogatepass") if "name" not in test else b"")
        given.seek(0)
        process = os.fork()
        if process == 0:
            try:
                os.setsid()
                os.close(answer.fileno())
                for descriptor, file in enumerate((given, printed)):
                    os.dup2(file.fileno(), descriptor)
                _be_the_program(code, test, task, returned, failure)
            finally:
                os._exit(0)
        status = _wait(process, task["seconds_each"])
        most = test["most_output"]
        result = returned if "name" in test else printed
        error = _read(failure, _LONGEST_REASON)
        if status is None:
            error = f"took longer than {task['seconds_each']:g} seconds"
        elif not error and os.WIFSIGNALED(status):
            error = f"was ended by signal {os.WTERMSIG(status)}"
        return {"error": error or None, "output": _read(result, most)}


def _wait(process: int, seconds: float) -> int | None:
    """Wait for a process and end its group. Returns its status, or None if it took too long."""
    end = time.monotonic() + seconds
    found, status = os.waitpid(process, os.WNOHANG)
    while not found and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        found, status = os.waitpid(process, os.WNOHANG)
    if not found:
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(process, signal.SIGKILL)  # what it has started
    if not found:
        os.waitpid(process, 0)
        return None
    return status


def _read(file: IO[bytes], most: int) -> str:
    """Return what a file has, up to one byte more than `most`."""
    file.seek(0)
    return file.read(most + 1).decode("utf-8", "replace")


def _be_the_program(
    code: types.CodeType, test: dict[str, Any], task: dict[str, Any], returned: IO[bytes], failure: IO[bytes]
) -> None:
    """Run the program in this process, which ends with it."""
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = printed = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    vars(sys).update(__stdin__=sys.stdin, __stdout__=printed)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(_MOST_DIGITS)
    try:
        module = _main_module()
        exec(task.get("prelude", ""), module.__dict__)
        exec(code, module.__dict__)
        if "name" in test:
            solution = module.Solution() if hasattr(module, "Solution") else module
            value = getattr(solution, test["name"])(*json.loads(test["input"]))
            returned.write(json.dumps(_encoded(value)).encode())
            returned.flush()
    except SystemExit:
        pass
    except MemoryError:
        failure.write(b"took more memory than it may")
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        failure.write(reason.encode("utf-8", "replace"))
    failure.flush()
    # What follows happens at the end of any program; some write their output only there.
    main_thread = threading.current_thread()
    while threads := [each for each in threading.enumerate() if not each.daemon and each is not main_thread]:
        for thread in threads:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, printed):  # the program may have closed or replaced the first one
        with contextlib.suppress(Exception):
            stream.flush()


def _encoded(value: Any) -> Any:
    """Return a value as JSON that keeps apart what Python does: tuples and sets are no lists.

    Raises:
        TypeError: It is of another type than the values that tests expect.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list | tuple):
        values = [_encoded(each) for each in value]
        return values if isinstance(value, list) else {"tuple": values}
    if isinstance(value, dict):
        return {"dict": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # one of NumPy's numbers
        return _encoded(value.item())
    raise TypeError(f"the function returned a {type(value).__name__}")


def _limit(limits: dict[str, Any]) -> None:
    """Set the limits of this process and of all that it starts. Windows has no such limits."""
    try:
        import resource
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
