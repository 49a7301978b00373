"""The command line of bubblewrap, and the filter of system calls that it installs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coe_native.errors import CoeError
from coe_native.evaluation import program_runner


@dataclass(frozen=True)
class Limits:
    """Limits of one program with all processes that it starts.

    Attributes:
        seconds: Wall-clock time.
        memory: Bytes of private memory, swap and files in memory, added up over its processes.
        file_bytes: Size of each file that it writes.
        open_files: Files that each process has open at once.
        processes: Number of processes and threads.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    file_bytes: int = 16 << 20
    open_files: int = 64
    processes: int = 32


RUNNER = Path(program_runner.__file__)

_RUNNER_PATH = "/runner.py"


ENVIRONMENT = {
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
    # Memory that does not count for any process.
    "memfd_create", "memfd_secret", "shmget", "msgget", "semget", "setxattr", "lsetxattr", "fsetxattr",
    "vmsplice", "splice", "tee", "setsockopt", "inotify_init", "inotify_init1",
    # Parts of the kernel that no judged program needs, and that are common targets of attacks.
    "bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open", "userfaultfd", "ptrace",
    "process_vm_readv", "process_vm_writev", "kcmp", "name_to_handle_at", "open_by_handle_at", "fanotify_init",
    # Mounts and namespaces.
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "mount_setattr",
    "fsopen", "fsconfig", "fsmount", "fspick",
)  # fmt: skip

_DENIED_NUMBERS = (463, 467)
"""setxattrat and open_tree_attr, the same on all machines, which older libraries do not know."""

_MAP_SHARED_ANONYMOUS, _MAP_HUGETLB, _SOCK_TYPES, _SOCK_STREAM, _AF_UNIX = 0x21, 0x40000, 0xF, 1, 1
_PR_SET_VMA = 0x53564D41

_CLONE_NEW = 0x7E020000 | 0x80
"""All CLONE_NEW* flags (linux/sched.h)."""


def bubblewrap_command(filter_descriptor: int, limits: Limits) -> list[str]:
    """Return the command that starts the runner isolated, in namespaces of its own.

    Of the machine's files, it sees only /usr and Python, both read-only.
    """
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
    # Without /dev/zero: mapped and shared, it is memory that does not count for any process.
    for name in ("null", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    command += ["--symlink", "/tmp", "/dev/shm", "--symlink", "/proc/self/fd", "/dev/fd"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        command += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    command += ["--ro-bind", str(RUNNER), _RUNNER_PATH, "--remount-ro", "/"]
    command += ["--chdir", "/tmp", "--seccomp", str(filter_descriptor)]
    return [*command, "--", sys.executable, "-I", "-B", _RUNNER_PATH]


def _bubblewrap() -> str:
    """Return the path of bubblewrap, or raise CoeError if it is not installed."""
    path = shutil.which("bwrap")
    if path is None:
        raise CoeError("bubblewrap is not installed; install your system's package bubblewrap")
    return path


def _limits_tmpfs(bubblewrap: str) -> bool:
    """Return whether bubblewrap can limit a tmpfs itself (from 0.7 on). It is watched in any case."""
    shown = subprocess.run([bubblewrap, "--help"], capture_output=True, text=True, check=False)
    return "--size" in shown.stdout + shown.stderr


def _interpreter_paths() -> list[Path]:
    """Return the directories of this interpreter, and of its virtual environment, that are not in /usr."""
    found: dict[Path, None] = {}
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)):
        for root in dict.fromkeys((Path(prefix), Path(prefix).resolve())):
            # Not the whole directory, because a home directory can be a virtual environment.
            for name in ("bin", "lib", "lib64", "pyvenv.cfg"):
                path = root / name
                if path.exists() and not path.is_symlink() and not path.is_relative_to("/usr"):
                    found[path] = None
    return list(found)


def _interpreter_links() -> list[tuple[Path, str]]:
    """Return the symlinks from ``sys.executable`` to its file, in directories outside the sandbox."""
    links = []
    path = Path(sys.executable)
    visible = [Path("/usr"), *_interpreter_paths()]
    while path.is_symlink():
        target = str(path.readlink())
        if not any(path.is_relative_to(directory) for directory in visible):
            links.append((path, target))
        path = Path(os.path.normpath(path.parent / target))
    return links


def system_call_filter() -> bytes:
    """Return the seccomp filter in bubblewrap's format: most calls are allowed, `_DENIED_CALLS` fail.

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
