"""Helper processes for work that may never end, take all memory or crash.

Examples are chat templates and grammars that came from others. Helpers run this Python interpreter and
exchange lines of JSON with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

START_SECONDS = 60.0
"""Time limit for a helper to import what it needs."""

MOST_MEMORY = 1 << 29
"""Bytes that a helper may allocate for its work, in addition to what it has at its start."""

LONGEST_ERROR = 500
"""Characters of an error that a helper reports."""


class HelperError(Exception):
    """A helper that took too much time or memory, or crashed."""


def python_line(code: str, *arguments: str) -> list[str]:
    """Return the command that runs some code.

    Unlike ``python -c`` alone, it imports nothing from the current directory, where others may have put
    modules.
    """
    return [sys.executable, "-c", f"import sys; sys.path[:] = filter(None, sys.path); {code}", *arguments]


class HelperProcess:
    """A process that answers questions. It starts with the first one, and several threads may use it.

    Args:
        code: Python code that calls `answer_questions`.
        arguments: Arguments of the process, in its `sys.argv`.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        self._command = python_line(code, *arguments)
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a question.

        Args:
            question: The question; JSON must be able to hold it.
            seconds: Time limit for the answer.

        Raises:
            HelperError: No answer came in time. The next question starts a new process.
        """
        with self._lock:
            if self._process is None:
                self._process = _start(self._command)
                self._exchange(self._process, "", START_SECONDS)
            line = self._exchange(self._process, json.dumps(question) + "\n", seconds)
            try:
                answer: dict[str, Any] = json.loads(line)
            except ValueError as error:
                self.close()
                raise HelperError("its answer cannot be read") from error
            return answer

    def _exchange(self, process: subprocess.Popen[str], text: str, seconds: float) -> str:
        """Send text to the process, and return the line that follows."""
        assert process.stdin is not None
        assert process.stdout is not None
        too_late = threading.Timer(seconds, process.kill)
        too_late.start()
        line = ""
        try:
            process.stdin.write(text)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # the process has ended
            pass
        finally:
            too_late.cancel()
        if not line.endswith("\n"):
            self.close()
            raise HelperError(f"it took more than {seconds:g} seconds or too much memory, or crashed")
        return line

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.communicate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C must reach this process only
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # a backtrace would start a debugger
    )


def answer_questions(
    answer: Callable[[dict[str, Any]], dict[str, Any]], seconds: float, *, memory: int = MOST_MEMORY
) -> None:
    """Answer questions until standard input ends. Runs in the helper.

    Args:
        answer: Returns the answer to one question.
        seconds: Time limit of each question.
        memory: Bytes that the process may allocate from now on.
    """
    # Whatever libraries print must not be mistaken for answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 1)
    _limit_memory(memory)
    print("{}", file=answers, flush=True)  # says that the helper has started
    for line in sys.stdin:
        _limit_time(seconds)
        try:
            reply = answer(json.loads(line))
        except MemoryError:
            reply = {"error": f"it took more than {memory >> 20} MB"}
        except Exception as error:  # a foreign program may raise anything
            reply = {"error": str(error)[:LONGEST_ERROR] or type(error).__name__}
        print(json.dumps(reply), file=answers, flush=True)


def _limit_memory(n_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    with contextlib.suppress(ValueError, OSError):  # macOS does not support a memory limit
        _lower(resource.RLIMIT_AS, psutil.Process().memory_info().vms + n_bytes)


def _limit_time(seconds: float) -> None:
    """Limit the CPU time of the next answer, in case the parent process is killed and cannot stop it."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 2 * int(seconds))


def _lower(what: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
