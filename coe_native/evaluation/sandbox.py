"""Run model-written programs in bubblewrap, with limits on time, memory, processes and files.

``docs/security.md`` says what a program in the sandbox can and cannot do. `open_sandbox` checks that
isolation works before the first program runs, and raises an error if it does not. ``program_runner.py`` runs
inside and executes the program; this module watches it from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from coe_native.errors import CoeError, printable
from coe_native.evaluation.bubblewrap import ENVIRONMENT, RUNNER, Limits, bubblewrap_command, system_call_filter
from coe_native.evaluation.process_memory import memory_and_threads, proportional_memory

_START_SECONDS = 60.0
"""Time limit for Python to start. The program's own time begins after that."""

_WATCH_SECONDS = 0.02
"""Time between two checks of a program's time and memory."""

_INODE_BYTES = 4096
"""Kernel memory of a file in a tmpfs, without its data; 3 KB were measured for a long-named directory."""

_MOST_READ = 1 << 16

_BYTES_OF_CHARACTER = 6
"""Most bytes of a character of output in JSON."""

_PROBE = """
import os, socket, subprocess, sys, tempfile, threading
for forbidden in (
    lambda: socket.socket(socket.AF_UNIX),
    lambda: open("/usr/written", "w"),
    lambda: open("/written", "w"),
    lambda: open("/etc/passwd"),
):
    try:
        forbidden()
    except OSError:
        continue
    raise RuntimeError("it is not isolated")
if sum(name.isdigit() for name in os.listdir("/proc")) > 2:
    raise RuntimeError("it sees other processes")
with tempfile.TemporaryFile() as file:
    file.write(b"x")
thread = threading.Thread(target=int)
thread.start()
thread.join()
subprocess.run([sys.executable, "-I", "-c", ""], check=True)
"""
"""A program that tests what the sandbox must forbid, and what it must allow."""


@dataclass(frozen=True)
class Outcome:
    """The result of one program.

    Attributes:
        passed: Whether its last statement was executed.
        result: ``passed``, or the reason why not.
        seconds: Wall-clock time, with start-up.
        isolated: Whether it ran isolated.
    """

    passed: bool
    result: str
    seconds: float
    isolated: bool


class Test(Protocol):
    """One of the tests of `Sandbox.run_tests`."""

    @property
    def most_output(self) -> int:
        """Return the most bytes of output that are read."""
        ...

    def task(self) -> dict[str, Any]:
        """Return what the runner is told: ``input``, ``most_output``, and the ``name`` of a function to call."""
        ...

    def why_wrong(self, result: dict[str, Any]) -> str:
        """Return why a result of the runner is wrong; empty if it is right."""
        ...


@dataclass(frozen=True)
class Sandbox:
    """Where programs run. Made by `open_sandbox`.

    Attributes:
        limits: Limits of each program.
        why_unisolated: The reason why programs are not isolated; empty if they are.
    """

    limits: Limits = field(default_factory=Limits)
    why_unisolated: str = ""

    @property
    def isolated(self) -> bool:
        """Return whether programs run isolated."""
        return not self.why_unisolated

    def run(self, program: str) -> Outcome:
        """Run a Python program, and return its result.

        A program passes when its last statement has been executed; its output is discarded. A program can
        find out how to report success without earning it, so this judges honest attempts only.

        Raises:
            CoeError: The sandbox itself could not be started or watched.
        """
        started = time.monotonic()
        proof = secrets.token_hex(16)
        with _Running.start(self.limits, self.isolated) as running:
            running.send({"program": program, "proof": proof, "limits": self._system_limits(self.limits)})
            stopped = running.watch()
            lines = running.answers()
        seconds = time.monotonic() - started
        if not stopped and f"passed {proof}" in lines:
            return Outcome(passed=True, result="passed", seconds=seconds, isolated=self.isolated)
        failed = next((line.partition(" ")[2] for line in lines if line.startswith(f"failed-{proof} ")), "")
        reason = stopped or failed or "ended before its last statement"
        return Outcome(passed=False, result=reason, seconds=seconds, isolated=self.isolated)

    def run_tests(self, program: str, tests: Sequence[Test], *, prelude: str = "", seconds: float) -> Outcome:
        """Run a Python program for each of several tests, up to the first that fails, and return the result.

        Each test runs in a process of its own. What a test expects stays outside of the sandbox.

        Args:
            program: The program.
            tests: The tests.
            prelude: Statements that run before it.
            seconds: Time limit of each test.

        Raises:
            CoeError: The sandbox itself could not be started or watched.
        """
        if not hasattr(os, "fork"):
            raise CoeError("programs can be run for several tests on Linux and macOS only")
        started = time.monotonic()
        proof = secrets.token_hex(16)
        outputs = sum(test.most_output for test in tests)
        limits = replace(
            self.limits,
            seconds=(seconds + 1) * len(tests) + 5,
            file_bytes=max(self.limits.file_bytes, _BYTES_OF_CHARACTER * outputs + _MOST_READ * len(tests)),
        )
        reason, n_passed = "", 0
        with _Running.start(limits, self.isolated) as running:

            def judge() -> bool:
                """Judge the tests that have run since, and return whether one failed."""
                nonlocal reason, n_passed
                for line in running.new_lines():
                    kind, _, answer = line.partition(" ")
                    if reason or n_passed == len(tests):
                        break
                    if kind == f"failed-{proof}":
                        reason = answer
                    elif kind == f"test-{proof}":
                        failed = _why_failed(tests, n_passed, answer)
                        reason = f"test {n_passed + 1} of {len(tests)}: {failed}" if failed else ""
                        n_passed += not failed
                return bool(reason)

            running.send(
                {
                    "program": program,
                    "prelude": prelude,
                    "proof": proof,
                    "limits": self._system_limits(limits),
                    "seconds_each": seconds,
                    "tests": [test.task() for test in tests],
                }
            )
            stopped = running.watch(judge)
            judge()
        if not reason and n_passed < len(tests):
            reason = stopped or f"ended itself in test {n_passed + 1} of {len(tests)}"
        return Outcome(not reason, reason or "passed", time.monotonic() - started, self.isolated)

    def _system_limits(self, limits: Limits) -> dict[str, Any]:
        """Return the limits that the runner sets.

        Before Linux 5.14, and without isolation, a limit of processes would count all processes of the user.
        """
        fields = asdict(limits)
        if not (self.isolated and _linux_version() >= (5, 14)):
            fields["processes"] = None
        return fields


def open_sandbox(limits: Limits | None = None, *, allow_unisolated: bool = False) -> Sandbox:
    """Return a sandbox whose isolation has been tested with a program.

    Args:
        limits: Limits of each program.
        allow_unisolated: If isolation does not work, return a sandbox with limits only, in which programs can
            do whatever the user can.

    Raises:
        CoeError: Isolation does not work here, and `allow_unisolated` is not set.
    """
    limits = limits or Limits()
    why = _why_unisolated(limits)
    if why and not allow_unisolated:
        raise CoeError(
            f"programs that the model writes cannot be isolated here: {why} (docs/security.md says what is "
            "needed); to run them with all your permissions instead, pass --allow-unisolated"
        )
    return Sandbox(limits, why)


def _why_unisolated(limits: Limits) -> str:
    """Return why isolation does not work here, and what to install; empty if it works."""
    if sys.platform != "linux":
        return "isolation needs Linux; use a Linux container or virtual machine"
    try:
        system_call_filter()
    except ImportError:
        return "pyseccomp is not installed; pip install 'coe-native[humaneval]'"
    except (OSError, RuntimeError) as error:  # pyseccomp raises RuntimeError without its library
        return f"the filter of system calls cannot be made ({error}); install your system's package libseccomp"
    try:
        outcome = Sandbox(limits).run(_PROBE)
    except CoeError as error:
        return str(error)
    return "" if outcome.passed else f"a harmless program failed in bubblewrap: {outcome.result}"


def _linux_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def _why_failed(tests: Sequence[Test], number: int, answer: str) -> str:
    """Return why a test failed, from the runner's answer; empty if it passed.

    A program can write such answers itself, so they are trusted no more than its output.
    """
    try:
        told, result = json.loads(answer)
        if told == number and isinstance(result["output"], str):
            return tests[number].why_wrong(result)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return "it interfered with the runner"


@contextlib.contextmanager
def _ahead_of_other_threads() -> Iterator[None]:
    """Let this thread run before all others, where that is allowed: as root.

    The kernel limits the number of an ordinary user's processes, but not of root's. They multiply until this
    thread counts them, so it must not wait for its turn among them.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)


@dataclass
class _Running:
    """A program's process, with its limits.

    Attributes:
        process: The process that was started: bubblewrap, or the runner without isolation.
        limits: The limits.
        isolated: Whether it runs isolated.
        answer_file: What the runner prints.
        error_file: Its standard error.
        disk: A descriptor of the sandbox's own /tmp.
        table: A descriptor of the sandbox's own /proc.
        first: The first process in the sandbox, with which all others end.
        n_read: Bytes of `answer_file` that `new_lines` has returned.
    """

    process: subprocess.Popen[bytes]
    limits: Limits
    isolated: bool
    answer_file: IO[bytes]
    error_file: IO[bytes]
    disk: int | None = None
    table: int | None = None
    first: psutil.Process | None = None
    n_read: int = 0

    @classmethod
    @contextlib.contextmanager
    def start(cls, limits: Limits, isolated: bool) -> Iterator[_Running]:
        """Start the runner. When the block ends, it is stopped with all processes that it started."""
        with contextlib.ExitStack() as cleanup:
            directory = cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix="coe-native-", ignore_cleanup_errors=True)
            )
            # Files, because their size is limited and a pipe's is not. They are opened twice, because a program
            # can change how its own descriptor is read.
            results = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="coe-native-results-"))
            written = [cleanup.enter_context((Path(results) / name).open("wb")) for name in ("answers", "errors")]
            answers, errors = (cleanup.enter_context(Path(file.name).open("rb", buffering=0)) for file in written)
            inherited: tuple[int, ...] = ()
            command = [sys.executable, "-I", str(RUNNER)]
            environment = ENVIRONMENT | {"HOME": directory, "TMPDIR": directory}
            if isolated:
                call_filter = cleanup.enter_context(tempfile.TemporaryFile())
                call_filter.write(system_call_filter())
                call_filter.seek(0)
                inherited = (call_filter.fileno(),)
                command = bubblewrap_command(inherited[0], limits)
                environment = ENVIRONMENT | {"HOME": "/tmp", "TMPDIR": "/tmp"}
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=written[0],
                    stderr=written[1],
                    cwd=directory,
                    env=environment,
                    pass_fds=inherited,
                    start_new_session=True,
                )
            except OSError as error:
                raise CoeError(f"the sandbox cannot be started: {error.strerror or error}") from error
            running = cls(
                process=process, limits=limits, isolated=isolated, answer_file=answers, error_file=errors
            )
            cleanup.enter_context(_ahead_of_other_threads())
            try:
                running._wait_until_ready()
                yield running
            finally:
                running.stop()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while "ready" not in self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.error_file.seek(0)
                said = self.error_file.read(_MOST_READ).decode("utf-8", "replace").strip().splitlines()
                raise CoeError(f"the sandbox did not start: {printable(said[-1]) if said else 'no reason given'}")
            time.sleep(0.002)
        if self.isolated:
            self.first = next(iter(self._processes()[1:2]), None)
            self.disk = self._open_inside("tmp")
            self.table = self._open_inside("proc")

    def _open_inside(self, name: str) -> int:
        """Open a directory of the sandbox. The runner still waits for its program, so nothing hides it yet."""
        for process in reversed(self._processes()):
            with contextlib.suppress(OSError):
                return os.open(f"/proc/{process.pid}/root/{name}", os.O_RDONLY | os.O_DIRECTORY)
        raise CoeError(f"the sandbox did not start: its /{name} cannot be watched")

    def send(self, task: object) -> None:
        """Send the task to the runner."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task).encode())
            self.process.stdin.close()

    def watch(self, is_enough: Callable[[], bool] = lambda: False) -> str:
        """Wait for the program, and return which limit stopped it; empty if it ended by itself.

        Args:
            is_enough: Called while it runs; True ends the wait.
        """
        end = time.monotonic() + self.limits.seconds
        while True:
            try:
                self.process.wait(min(_WATCH_SECONDS, max(0.0, end - time.monotonic())))
                return ""
            except subprocess.TimeoutExpired:
                pass
            if is_enough():
                return ""
            if time.monotonic() >= end:
                return f"took longer than {self.limits.seconds:g} seconds"
            most = self.limits.processes + 2  # two are bubblewrap's own
            if self._count_processes() > most:
                return "started more processes than it may"
            processes = self._processes()
            memory, tasks = self._usage(processes, memory_and_threads)
            if tasks > most:
                return "started more processes than it may"
            if memory > self.limits.memory:
                memory, _ = self._usage(processes, proportional_memory)
                if memory > self.limits.memory:
                    return "took more memory than it may"

    def _usage(
        self, processes: Sequence[psutil.Process], of_process: Callable[[psutil.Process], tuple[int, int]]
    ) -> tuple[int, int]:
        """Return the bytes of memory, and the number of processes and threads, of all processes together."""
        memory, tasks = 0, 0
        for process in processes:
            with contextlib.suppress(OSError, psutil.Error):
                of_one, threads = of_process(process)
                memory += of_one
                tasks += threads
        if self.disk is not None:
            status = os.fstatvfs(self.disk)
            memory += (status.f_blocks - status.f_bfree) * status.f_frsize
            memory += (status.f_files - status.f_ffree) * _INODE_BYTES
        return memory, tasks

    def _count_processes(self) -> int:
        """Return how many processes there are, by one listing: looking at each gives them time to multiply."""
        if self.table is None:
            return len(self._processes())
        with os.scandir(self.table) as entries:
            return sum(entry.name.isdigit() for entry in entries)

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def answers(self) -> list[str]:
        """Return the lines that the runner has printed so far."""
        self.answer_file.seek(0)
        return self.answer_file.read(_MOST_READ).decode("utf-8", "replace").splitlines()

    def new_lines(self) -> list[str]:
        """Return the lines that the runner has printed since the last call."""
        self.answer_file.seek(self.n_read)
        data = self.answer_file.read()
        end = data.rfind(b"\n") + 1
        self.n_read += end
        return data[:end].decode("utf-8", "replace").splitlines()

    def stop(self) -> None:
        """End all processes, and wait until they have ended."""
        for descriptor in (self.disk, self.table):
            if descriptor is not None:
                os.close(descriptor)
        self.disk = self.table = None
        for process in [self.first] if self.first is not None else self._processes()[::-1]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.communicate()
