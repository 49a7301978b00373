"""Run model-written programs in bubblewrap, with limits on time, memory, processes and files.

``docs/security.md`` says what a program in the sandbox can and cannot do. `open_sandbox` checks that isolation
works before the first program runs, and refuses where it does not. ``program_runner.py`` runs inside and executes
the program; this module watches it from outside.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from coe_native.errors import CoeError, printable
from coe_native.evaluation import program_runner

_RUNNER = Path(program_runner.__file__)
_RUNNER_INSIDE = "/runner.py"

_START_SECONDS = 60.0
"""For Python to start; the program's own time begins after that."""

_WATCH_SECONDS = 0.02
"""Between two looks at the time and the memory of a program."""

_INODE_BYTES = 4096
"""Kernel memory of a file in a tmpfs beside its data; 3 KB were measured for a directory with a long name."""

_MOST_READ = 1 << 16

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    # Libraries that start a thread for each core would need more memory and processes on larger machines.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Each thread would reserve address space for memory of its own, which is limited.
    "MALLOC_ARENA_MAX": "1",
}

_DENIED_CALLS = (
    # Sockets: only pairs of stream sockets remain, which lead nowhere else.
    "socket", "connect", "bind", "listen", "accept", "accept4",
    # Keyrings are inherited and belong to no namespace.
    "add_key", "keyctl", "request_key",
    # Memory that no process's own size shows.
    "memfd_create", "memfd_secret", "shmget", "msgget", "semget", "setxattr", "lsetxattr", "fsetxattr",
    "vmsplice", "splice", "tee", "setsockopt", "inotify_init", "inotify_init1",
    # Parts of the kernel that no judged program needs, and that attackers like.
    "bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open", "userfaultfd", "ptrace",
    "process_vm_readv", "process_vm_writev", "kcmp", "name_to_handle_at", "open_by_handle_at", "fanotify_init",
    # Mounts and namespaces.
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "mount_setattr",
    "fsopen", "fsconfig", "fsmount", "fspick",
)  # fmt: skip
_DENIED_NUMBERS = (463, 467)
"""setxattrat and open_tree_attr, the same on all machines, which older libraries do not know."""

_PR_SET_VMA = 0x53564D41
_CLONE_NEW = 0x7E020000 | 0x80
"""All CLONE_NEW* flags (linux/sched.h)."""

_MAP_SHARED_ANONYMOUS, _MAP_HUGETLB, _SOCK_TYPES, _SOCK_STREAM, _AF_UNIX = 0x21, 0x40000, 0xF, 1, 1

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
"""What the sandbox must keep a program from, and what it must let one do."""


@dataclass(frozen=True)
class Limits:
    """Limits of one program with all processes that it starts.

    seconds: wall-clock time.
    memory: bytes of private memory, swap and files in memory, added up over its processes.
    file_bytes: size of each file that it writes.
    open_files: files that each process has open at once.
    processes: processes and threads.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64
    processes: int = 32


@dataclass(frozen=True)
class Outcome:
    """Result of one program: whether its last statement was executed, ``passed`` or the reason why not, its
    wall-clock seconds with start-up, and whether it ran isolated."""

    passed: bool
    result: str
    seconds: float
    isolated: bool


@dataclass(frozen=True)
class Sandbox:
    """Where programs run; made by `open_sandbox`.

    why_unisolated: the reason why programs are not isolated; empty where they are.
    """

    limits: Limits = field(default_factory=Limits)
    why_unisolated: str = ""

    @property
    def isolated(self) -> bool:
        return not self.why_unisolated

    def run(self, program: str) -> Outcome:
        """Run a Python program and return what came of it.

        A program passes when its last statement has been executed; what it prints is discarded. A program can find
        out how to report success without earning it, so this judges honest attempts only.

        Raises:
            CoeError: The sandbox itself could not be started or watched.
        """
        started = time.monotonic()
        proof = secrets.token_hex(16)
        with _Running.start(self.limits, self.isolated) as running:
            running.send({"program": program, "proof": proof, "limits": self._system_limits()})
            stopped = running.watch()
            lines = running.answers()
        seconds = time.monotonic() - started
        if not stopped and f"passed {proof}" in lines:
            return Outcome(True, "passed", seconds, self.isolated)
        failed = next((line.partition(" ")[2] for line in lines if line.startswith(f"failed-{proof} ")), "")
        reason = stopped or failed or "ended before its last statement"
        return Outcome(False, reason, seconds, self.isolated)

    def _system_limits(self) -> dict[str, Any]:
        """Return the limits that the runner sets. Before Linux 5.14, and without isolation, the limit of processes
        would count all processes of the user."""
        limits = asdict(self.limits)
        if not (self.isolated and _linux_version() >= (5, 14)):
            limits["processes"] = None
        return limits


def open_sandbox(limits: Limits | None = None, *, allow_unisolated: bool = False) -> Sandbox:
    """Return a sandbox whose isolation has been tested with a program.

    Args:
        limits: Limits of each program.
        allow_unisolated: Where isolation does not work, return a sandbox with limits only, in which programs can
            do whatever the user can.

    Raises:
        CoeError: Isolation does not work here, and `allow_unisolated` is not set.
    """
    limits = limits or Limits()
    why = _why_unisolated(limits)
    if why and not allow_unisolated:
        raise CoeError(
            f"programs that the model writes cannot be isolated here: {why} (docs/security.md says what is "
            "needed); to run them with all your rights instead, pass --allow-unisolated"
        )
    return Sandbox(limits, why)


def _why_unisolated(limits: Limits) -> str:
    """Return why isolation does not work here, and what to install; empty where it works."""
    if sys.platform != "linux":
        return "that needs Linux; use a Linux container or virtual machine"
    try:
        _system_call_filter()
    except ImportError:
        return "pyseccomp is not installed; pip install 'coe-native[humaneval]'"
    except (OSError, RuntimeError) as error:  # pyseccomp raises RuntimeError without its library
        return f"no filter for system calls can be made ({error}); install your system's package libseccomp"
    try:
        outcome = Sandbox(limits).run(_PROBE)
    except CoeError as error:
        return str(error)
    return "" if outcome.passed else f"a harmless program failed in bubblewrap: {outcome.result}"


def _linux_version() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


@dataclass
class _Running:
    """A program's process, with its limits."""

    process: subprocess.Popen[bytes]
    limits: Limits
    isolated: bool
    answer_file: IO[bytes]
    error_file: IO[bytes]
    disk: int | None = None
    """A descriptor of the sandbox's own /tmp."""
    first: psutil.Process | None = None
    """The first process of the sandbox, with which all others end."""

    @classmethod
    @contextlib.contextmanager
    def start(cls, limits: Limits, isolated: bool) -> Iterator[_Running]:
        """Start the runner, and stop it with all processes that it started when the block ends."""
        with contextlib.ExitStack() as cleanup:
            directory = cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix="coe-native-", ignore_cleanup_errors=True)
            )
            # Files, because a program could fill a pipe's reader without end; their size is limited. They are
            # opened twice, because a program can change how the file that it has is read.
            results = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="coe-native-results-"))
            written = [cleanup.enter_context((Path(results) / name).open("wb")) for name in ("answers", "errors")]
            answers, errors = (cleanup.enter_context(Path(file.name).open("rb", buffering=0)) for file in written)
            inherited: tuple[int, ...] = ()
            command = [sys.executable, "-I", str(_RUNNER)]
            environment = _ENVIRONMENT | {"HOME": directory, "TMPDIR": directory}
            if isolated:
                call_filter = cleanup.enter_context(tempfile.TemporaryFile())
                call_filter.write(_system_call_filter())
                call_filter.seek(0)
                inherited = (call_filter.fileno(),)
                command = _bubblewrap_command(inherited[0], limits)
                environment = _ENVIRONMENT | {"HOME": "/tmp", "TMPDIR": "/tmp"}
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
            running = cls(process, limits, isolated, answers, errors)
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
            self.disk = self._open_disk()

    def _open_disk(self) -> int:
        """The runner waits for its program, so nothing hides it yet."""
        for process in reversed(self._processes()):
            with contextlib.suppress(OSError):
                return os.open(f"/proc/{process.pid}/root/tmp", os.O_PATH | os.O_DIRECTORY)
        raise CoeError("the sandbox did not start: its files cannot be watched")

    def send(self, task: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(task).encode())
            self.process.stdin.close()

    def watch(self) -> str:
        """Wait for the program. Return which limit stopped it; empty where it ended by itself."""
        end = time.monotonic() + self.limits.seconds
        while True:
            try:
                self.process.wait(min(_WATCH_SECONDS, max(0.0, end - time.monotonic())))
                return ""
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() >= end:
                return f"took longer than {self.limits.seconds:g} seconds"
            processes = self._processes()
            most = self.limits.processes + 2  # two are bubblewrap's own
            if len(processes) > most:  # which may be thousands by now
                return "started more processes than it may"
            memory, tasks = self._usage(processes, _memory_and_threads)
            if tasks > most:
                return "started more processes than it may"
            if memory > self.limits.memory:
                memory, _ = self._usage(processes, _proportional_memory)
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

    def _processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def answers(self) -> list[str]:
        self.answer_file.seek(0)
        return self.answer_file.read(_MOST_READ).decode("utf-8", "replace").splitlines()

    def stop(self) -> None:
        """End all processes, and wait for that."""
        if self.disk is not None:
            os.close(self.disk)
            self.disk = None
        for process in [self.first] if self.first is not None else self._processes()[::-1]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.communicate()


def _memory_and_threads(process: psutil.Process) -> tuple[int, int]:
    """Return a process's bytes of private and shared memory and of swap, without files, and its threads. Memory
    that several processes share counts for each of them."""
    if sys.platform != "linux":
        return process.memory_info().rss, process.num_threads()
    # psutil has these only with a slow walk over all pages, which a process may also forbid.
    values = _kilobytes(Path(f"/proc/{process.pid}/status"), _MEMORY_FIELDS)
    threads = _kilobytes(Path(f"/proc/{process.pid}/status"), ("Threads",))["Threads"]
    if not values:  # the first thread has ended, and others go on
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        values = max((_kilobytes(task / "status", _MEMORY_FIELDS) for task in tasks), key=len, default={})
    return 1024 * sum(values.values()), threads


def _proportional_memory(process: psutil.Process) -> tuple[int, int]:
    """Return the same, but memory that several processes share is divided among them: this takes longer, and a
    process can forbid it."""
    memory, threads = _memory_and_threads(process)
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


def _bubblewrap_command(filter_descriptor: int, limits: Limits) -> list[str]:
    """Return the command that starts the runner isolated: in namespaces of its own, on a file system that has /usr
    and Python read-only and nothing else of the machine's."""
    bubblewrap = _bubblewrap()
    command = [bubblewrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    # First, because Python itself may be in /tmp.
    if _limits_tmpfs(bubblewrap):
        command += ["--size", str(limits.memory)]
    command += ["--tmpfs", "/tmp"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            command += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        command += ["--ro-bind-try", name, name]
    for path in _interpreter_paths():
        command += ["--ro-bind", str(path), str(path)]
    for link, target in _interpreter_links():
        command += ["--symlink", target, str(link)]
    # Read-only, because root would own the kernel's settings in it, also without any capability.
    command += ["--proc", "/proc", "--remount-ro", "/proc"]
    # No /dev/zero: mapped and shared, it is memory that no process's own size shows.
    for name in ("null", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    command += ["--symlink", "/tmp", "/dev/shm", "--symlink", "/proc/self/fd", "/dev/fd"]
    command += ["--ro-bind", str(_RUNNER), _RUNNER_INSIDE, "--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--seccomp", str(filter_descriptor)]
    return [*command, "--", sys.executable, "-I", "-B", _RUNNER_INSIDE]


def _bubblewrap() -> str:
    """Return the path of the program. Raises CoeError where it is missing."""
    path = shutil.which("bwrap")
    if path is None:
        raise CoeError("bubblewrap is not installed; install your system's package bubblewrap")
    return path


def _limits_tmpfs(bubblewrap: str) -> bool:
    """Whether bubblewrap can limit a tmpfs itself (from 0.7 on); it is watched in any case."""
    shown = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, check=False)
    return "--size" in shown.stdout + shown.stderr


def _interpreter_paths() -> list[Path]:
    """Return the directories of this interpreter, and of its virtual environment, that are not in /usr."""
    found: dict[Path, None] = {}
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)):
        for root in dict.fromkeys((Path(prefix), Path(prefix).resolve())):
            # Not all of it: somebody's home directory can be a virtual environment.
            for name in ("bin", "lib", "lib64", "pyvenv.cfg"):
                path = root / name
                if path.exists() and not path.is_symlink() and not path.is_relative_to("/usr"):
                    found[path] = None
    return list(found)


def _interpreter_links() -> list[tuple[Path, str]]:
    """Return symlinks on the way from ``sys.executable`` to the file, in directories that are not there inside."""
    links = []
    path = Path(sys.executable)
    there = [Path("/usr"), *_interpreter_paths()]
    while path.is_symlink():
        target = str(path.readlink())
        if not any(path.is_relative_to(directory) for directory in there):
            links.append((path, target))
        path = Path(os.path.normpath(path.parent / target))
    return links


def _system_call_filter() -> bytes:
    """Return the seccomp filter as bubblewrap takes it: most calls are allowed, `_DENIED_CALLS` fail.

    Raises:
        ImportError: pyseccomp is not installed.
        RuntimeError, OSError: libseccomp is missing or fails.
    """
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    denied = pyseccomp.ERRNO(errno.EPERM)
    for name in _DENIED_CALLS:
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) > 0:  # older libraries do not know all
            rules.add_rule(denied, name)
    for number in _DENIED_NUMBERS:
        rules.add_rule(denied, number)
    rules.add_rule(denied, "prctl", pyseccomp.Arg(0, pyseccomp.EQ, _PR_SET_VMA))
    for bit in (1 << i for i in range(64)):
        if bit & _CLONE_NEW:
            rules.add_rule(denied, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, bit, bit))
    # Its flags are in memory, where no filter sees them; the C library then uses clone.
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for flags in (_MAP_SHARED_ANONYMOUS, _MAP_HUGETLB):
        rules.add_rule(denied, "mmap", pyseccomp.Arg(3, pyseccomp.MASKED_EQ, flags, flags))
    rules.add_rule(denied, "socketpair", pyseccomp.Arg(0, pyseccomp.NE, _AF_UNIX))
    for kind in range(_SOCK_TYPES + 1):
        if kind != _SOCK_STREAM:  # a pair of datagram sockets can send to any other socket
            rules.add_rule(denied, "socketpair", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, _SOCK_TYPES, kind))
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
