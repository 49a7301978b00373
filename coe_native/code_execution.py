"""Runs code that nobody has read, where it can do little harm.

It runs in a process of its own, with limits on time, memory, files and processes, and, where Linux lets us, in
namespaces of its own: without a network, with no other process in sight, and with all of the disk read-only but
for a small directory in memory, which is gone with it. It can still read what the user can read, and talk to who
listens at a socket's path elsewhere than in /run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from coe_native.helper_process import python_line

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_RDONLY, _MS_NOSUID_NODEV, _MS_REC_PRIVATE = 1, 2 | 4, 0x4000 | 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1

_START_SECONDS = 10.0
"""For Python to start, twice, before the program's own time begins."""

_MOST_SAID = 2000
_MOST_READ = 1 << 16


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds, bytes of memory (of each of its processes), bytes of a file, files that are open at
    once, and processes (which the system does not count for root)."""

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """What came of a program: whether it ran to its end; in words, what stopped it, or ``passed``; the seconds
    that it took; and whether it ran isolated, in namespaces of its own."""

    passed: bool
    result: str
    seconds: float
    isolated: bool


def execute(program: str, limits: Limits | None = None) -> Outcome:
    """Runs a Python program. It has passed when its last statement has been executed: that it ends by itself, or
    prints something, says nothing. Raises OSError where no process can be started.

    Who looks for it can find a way to say that a program has passed: this judges honest attempts.
    """
    limits = limits or Limits()
    proof = secrets.token_hex(16)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="coe-native-", ignore_cleanup_errors=True) as directory,
        tempfile.TemporaryFile() as said,  # not a pipe, which could be filled without end
    ):
        process = subprocess.Popen(
            python_line("from coe_native.code_execution import _prepare; _prepare()", directory),
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={"PATH": os.environ.get("PATH", ""), "HOME": directory, "TMPDIR": directory, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        task = {"program": program, "proof": proof, "limits": asdict(limits)}
        told = "ended before its last statement"
        try:
            process.communicate(json.dumps(task).encode(), timeout=limits.seconds + _START_SECONDS)
        except subprocess.TimeoutExpired:
            told = f"took longer than {limits.seconds:g} seconds"
        finally:
            _end(process)
        said.seek(0)
        lines = said.read(_MOST_READ).decode("utf-8", "replace").splitlines()
    isolated = "isolated" in lines[:1]
    seconds = time.monotonic() - started
    if f"passed {proof}" in lines:
        return Outcome(True, "passed", seconds, isolated)
    reason = next((line.partition(" ")[2] for line in lines if line.startswith(f"failed-{proof} ")), told)
    return Outcome(False, reason, seconds, isolated)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started; in namespaces, whatever tries to get away goes with the first
    process in them."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.communicate()


def _prepare() -> None:
    """In the process that is started: isolates it as far as it can, and starts the one that runs the program, with
    no privileges in what it has made. As the first process of its namespace that takes all others with it."""
    directory = sys.argv[1]
    isolated = sys.platform == "linux" and _isolate(directory)
    print("isolated" if isolated else "limited", flush=True)
    line = python_line("from coe_native.code_execution import _run; _run()")
    if not isolated:
        os.execv(line[0], line)
    child = os.fork()
    if child == 0:
        os.execv(line[0], line)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status) & 127)


def _isolate(directory: str) -> bool:
    """New namespaces for this process and those that it starts; False where the system does not let us."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    namespaces = _CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC
    if libc.unshare(namespaces) != 0:
        return False
    try:
        # Somebody without rights, so that what runs later has none over these namespaces.
        for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError:
        return False
    # struct mount_attr: attributes to set, to clear, propagation, a namespace's file.
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))

    def in_memory(place: str, flags: int, options: bytes) -> bool:
        flags_ = ctypes.c_ulong(_MS_NOSUID_NODEV | flags)
        return bool(libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", flags_, options) == 0)

    alone = bool(
        libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) == 0
        and libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, size) == 0
        and in_memory("/proc", _MS_RDONLY, b"size=0")  # which tells of all other processes
        and (not Path("/run").is_dir() or in_memory("/run", _MS_RDONLY, b"size=0"))  # sockets of services
        and in_memory(directory, 0, b"size=64m,nr_inodes=1000,mode=0700")
    )
    if alone:
        os.chdir(directory)
    return alone


def _run() -> None:
    """In the last process: sets limits, and runs the program. What it prints goes nowhere."""
    task = json.loads(sys.stdin.buffer.read())
    limits, proof = Limits(**task["limits"]), task["proof"]
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)

    def tell(what: str) -> None:
        answer.write(what + "\n")
        answer.flush()
        os._exit(0)

    def fail(reason: str) -> None:
        tell(f"failed-{proof} {' '.join(reason.split())[:_MOST_SAID]}")

    try:
        _limit(limits, lambda *_: fail(f"took longer than {limits.seconds:g} seconds"))
        exec(compile(task["program"], "<program>", "exec", dont_inherit=True), {"__name__": "__main__"})
    except SystemExit:
        fail("ended itself")
    except MemoryError:
        fail("took more memory than it may")
    except BaseException as error:  # it is anybody's
        fail(f"{type(error).__name__}: {error}")
    tell(f"passed {proof}")


def _limit(limits: Limits, too_late: Callable[[int, FrameType | None], None]) -> None:
    """Of this process, and each that it starts. Windows knows no such limits: there only the time is limited, by
    who has started it."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CPU, math.ceil(limits.seconds) + 1),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (least, least))
        except ValueError:
            if sys.platform == "linux":  # macOS takes no limit of memory
                raise
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
