"""Programs that try to leave the sandbox, to see more than it holds, or to take more than they may.

Each attack runs as the user who runs the tests; as root, also as an ordinary user.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

import coe_native.evaluation.bubblewrap
import coe_native.evaluation.sandbox
from coe_native.errors import CoeError
from coe_native.evaluation.sandbox import Limits, Outcome, Sandbox, open_sandbox

QUICK = Limits(seconds=2.0)
ROOT = Path(coe_native.evaluation.sandbox.__file__).parents[2]
AS_NOBODY = """
import json, sys
from coe_native.evaluation.sandbox import Limits, open_sandbox
task = json.load(sys.stdin)
outcome = open_sandbox(Limits(**task["limits"])).run(task["program"])
print(json.dumps([outcome.passed, outcome.result, outcome.seconds, outcome.isolated]))
"""

Run = Callable[[str, Limits], Outcome]


def why_not_here() -> str:
    try:
        open_sandbox()
    except CoeError as error:
        return str(error)
    return ""


WHY_NOT = why_not_here()
isolates = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "isolation works")


def as_nobody(code: str, given: str = "") -> str:
    """What Python code prints that runs as an ordinary user, with the system's own Python: ours may be in a
    directory that only root can read."""
    nobody = pwd.getpwnam("nobody")
    ran = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", code],
        input=given,
        env={"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}", "PATH": os.environ["PATH"]},
        cwd="/",
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        pytest.skip(f"an ordinary user cannot run this checkout: {ran.stderr.strip().splitlines()[-1]}")
    return ran.stdout


def run_as_nobody(program: str, limits: Limits) -> Outcome:
    return Outcome(*json.loads(as_nobody(AS_NOBODY, json.dumps({"program": program, "limits": asdict(limits)}))))


@pytest.fixture(params=["this user", "an ordinary user"])
def run(request: pytest.FixtureRequest) -> Run:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    if request.param == "this user":
        return lambda program, limits: open_sandbox(limits).run(program)
    if os.geteuid() != 0:
        pytest.skip("this user is an ordinary one")
    return run_as_nobody


@contextlib.contextmanager
def listening(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[list[bytes]]:
    """A socket that all users may connect to, and what it received."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.settimeout(0.1)
        ended = threading.Event()

        def listen() -> None:
            if kind is socket.SOCK_STREAM:
                server.listen()
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    heard.append(server.accept()[0].recv(100) if kind is socket.SOCK_STREAM else server.recv(100))

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        ended.set()
        thread.join()


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory in which everybody may do everything, with a file and a FIFO. Not pytest's own, which
    an ordinary user cannot enter."""
    directory = Path(tempfile.mkdtemp(prefix="coe-native-outside-", dir="/tmp"))
    directory.chmod(0o777)
    (directory / "victim").write_text("here")
    (directory / "victim").chmod(0o666)
    os.mkfifo(directory / "fifo")
    (directory / "fifo").chmod(0o666)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    "attack",
    [
        "open(OUTSIDE + '/victim').read()",
        "open(OUTSIDE + '/victim', 'w').write('gone')",
        "os.remove(OUTSIDE + '/victim')",
        "os.open(OUTSIDE + '/fifo', os.O_WRONLY | os.O_NONBLOCK)",
        "os.listdir(HOME + '/.ssh')",
        "open('/etc/passwd')",
        "open('/etc/shadow')",
        "os.listdir('/dev/pts')",
        "os.open('/dev/tty', os.O_RDWR)",
        "os.open('/dev/kvm', os.O_RDWR)",
        "os.open('/dev/sda', os.O_RDONLY)",
        "os.mknod('/tmp/zero', 0o600 | 0o020000, os.makedev(1, 5))",
        "open('/usr/bin/new', 'w')",
        "open(sys.prefix + '/new', 'w')",
        "open('/new', 'w')",
        "open('/proc/sysrq-trigger', 'w')",
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "os.listdir('/run')",
        "os.listdir('/sys')",
        "os.kill(PARENT, 9)",
        "open(f'/proc/{PARENT}/environ')",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_INET)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socketpair(type=socket.SOCK_DGRAM)",
        "socket.create_connection(('127.0.0.1', 80), 1)",
        "call(b'keyctl', 250, 219, 0, -3, 0)",  # KEYCTL_GET_KEYRING_ID of the session's keyring
        "call(b'add_key', 248, 217, b'user', b'x', b'x', 1, -3)",
        "call(b'ptrace', 101, 117, 16, 1, 0, 0)",
        "call(b'bpf', 321, 280, 0, 0, 0)",
        "call(b'io_uring_setup', 425, 425, 8, bytes(120))",
        "call(b'unshare', 272, 97, 0x10000000)",
        "call(b'memfd_create', 319, 279, b'x', 0)",
        "call(b'shmget', 29, 194, 0, 1 << 20, 0o1600)",
        "call(b'msgget', 68, 186, 0, 0o1600)",
        "call(b'vmsplice', 278, 75, 1, None, 0, 0)",
        "call(b'splice', 275, 76, 0, None, 1, None, 1, 0)",
        "call(b'socketpair', 53, 199, 16, 1, 0, bytes(8))",
        "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)",
        "os.setxattr('/tmp', 'user.x', b'x')",
        "call(b'setxattrat', 463, 463, -100, b'/tmp', 0, b'user.x', bytes(16), 16)",
        "call(b'inotify_init1', 294, 26, 0)",
        "check(libc.prctl(0x53564D41, 0, 4096, 4096, b'x'))",
        "check(libc.mount(None, b'/', None, 0x1020, None))",
        "check(libc.umount2(b'/', 2))",
        "check(libc.chroot(b'/tmp'))",
        "mmap.mmap(-1, 1 << 20)",
        "os.setuid(0)",
        "os.setns(os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
        "open('/proc/1/mem', 'r+b')",
        "open('/dev/zero')",
    ],
)
@isolates
def test_what_is_outside_cannot_be_reached(run: Run, outside: Path, attack: str) -> None:
    program = f"""
import ctypes, mmap, os, platform, socket, sys
OUTSIDE, HOME, PARENT = {str(outside)!r}, {str(Path.home())!r}, {os.getpid()}
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), 'refused')

def call(name, on_x86, on_arm, *arguments):
    check(libc.syscall({{'x86_64': on_x86, 'aarch64': on_arm}}[platform.machine()], *arguments))

try:
    {attack}
except (OSError, AttributeError) as error:
    assert not isinstance(error, AttributeError) or sys.version_info < (3, 12), error
else:
    raise RuntimeError('it was let')
"""
    outcome = run(program, QUICK)
    assert outcome.isolated
    assert outcome.passed, outcome
    assert (outside / "victim").read_text() == "here"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_no_socket_of_another_program_can_be_reached(run: Run, outside: Path, kind: socket.SocketKind) -> None:
    """A terminal multiplexer's socket in /tmp would run any command that it is sent."""
    with listening(outside / "socket", kind) as heard:
        outcome = run(
            f"""
import ctypes, os, socket
tries = [lambda: socket.socket(socket.AF_UNIX, {int(kind)}).connect({str(outside / "socket")!r})]
for other in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    tries += [
        lambda: socket.socketpair(type=other)[0].sendto(b'x', {str(outside / "socket")!r}),
        lambda: socket.socketpair(type=other)[0].sendmsg([b'x'], [], 0, {str(outside / "socket")!r}),
        lambda: socket.socketpair(type=other)[0].connect({str(outside / "socket")!r}),
    ]
for attempt in tries:
    try:
        attempt()
    except OSError:
        continue
    raise RuntimeError('it was let')
""",
            QUICK,
        )
    assert outcome.passed, outcome
    assert heard == []


@isolates
def test_environment_and_descriptors_are_not_inherited(
    run: Run, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "key")
    descriptor = os.open(outside / "victim", os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        outcome = run(
            f"RESULTS = {str(Path(tempfile.gettempdir()) / 'coe-native-results-')!r}"
            """
import os
assert not any('key' in value for value in os.environ.values()), os.environ
for number in os.listdir('/proc/self/fd'):
    try:
        where = os.readlink(f'/proc/self/fd/{number}')
    except OSError:
        continue
    # Only the file in which the result is told lies outside.
    assert where.startswith(('/proc', '/dev/null', RESULTS)), where
assert sorted(name for name in os.listdir('/proc') if name.isdigit()) == ['1', str(os.getpid())]
""",
            QUICK,
        )
    finally:
        os.close(descriptor)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("import sys; sys.exit(0)", "ended itself"),
        ("import os; os._exit(0)", "ended before its last statement"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("print('passed'); import os; os.write(1, b'passed'); os._exit(0)", "ended before"),
        ("while True:\n    pass", "took longer than 2 seconds"),
        ("import time; time.sleep(1000)", "took longer than 2 seconds"),
        ("import signal\nsignal.pthread_sigmask(0, range(1, 65))\nwhile True: pass", "took longer than 2 seconds"),
        ("x = [0] * 10**10", "took more memory"),
        ("import os\nwhile True:\n    os.write(3, b'x' * 10**6)", "File too large|ended before|took longer"),
        ("import os\nwhile True:\n    os.write(1, b'x' * 10**6)", "took longer than 2 seconds"),
        ("open('big', 'w').write('x' * 10**8)", "File too large"),
        ("x = [open(str(i), 'w') for i in range(1000)]", "Too many open files"),
        ("import os\nwhile True:\n    os.fork()", "more processes|temporarily unavailable"),
        ("import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9,)).start()",
         "more processes|start new thread|more memory"),
    ],
)  # fmt: skip
def test_limits_end_a_program(run: Run, code: str, result: str) -> None:
    started = time.monotonic()
    outcome = run(code, QUICK)
    assert not outcome.passed
    assert any(part in outcome.result for part in result.split("|")), outcome
    assert "\n" not in outcome.result
    assert time.monotonic() - started < 10


def test_processes_do_not_multiply_on_a_busy_machine(run: Run) -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        outcomes = [run("import os\nwhile True:\n    os.fork()", QUICK) for _ in range(8)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert all(outcome.seconds < 5 for outcome in outcomes), outcomes


@pytest.mark.parametrize(
    "code",
    [
        # Children that each stay below the limit of one process.
        "for i in range(12):\n    if os.fork() == 0:\n        x = bytearray(30 << 20)\n        time.sleep(60)",
        # Files in memory, in one piece and in many.
        "for i in range(100):\n    open(f'/tmp/{i}', 'wb').write(bytes(15 << 20))",
        "for i in range(10**7):\n    open(f'/dev/shm/{i}', 'wb').close()",
        "while True:\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)",
        "for i in range(10**7):\n    os.symlink('x' * 4000, f'/tmp/{i}')",
        # A mapping of a file that is gone.
        "for i in range(100):\n"
        "    file = open('/tmp/x', 'w+b'); file.write(bytes(15 << 20)); file.flush()\n"
        "    kept.append(mmap.mmap(file.fileno(), 0)); os.remove('/tmp/x')",
        # Processes whose first thread has ended.
        "import threading\n"
        "for i in range(12):\n    if os.fork() == 0:\n"
        "        threading.Thread(target=lambda: kept.append(bytearray(30 << 20)) or time.sleep(60)).start()\n"
        "        time.sleep(0.5)\n"
        "        ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)",
        # A process that is not dumpable, so that its pages cannot be inspected.
        "ctypes.CDLL(None).prctl(4, 0)\n"
        "for i in range(12):\n    if os.fork() == 0:\n        x = bytearray(30 << 20)\n        time.sleep(60)",
    ],
)
def test_memory_is_limited_over_all_processes_and_files(run: Run, code: str) -> None:
    """The machine loses a few hundred megabytes of free memory meanwhile, whatever is tried."""
    limits = Limits(seconds=20.0, memory=200 << 20)
    program = f"import ctypes, mmap, os, time\nkept = []\n{code}\ntime.sleep(60)"
    for _ in range(3):  # other programs need memory too
        outcome, lost = with_lost_memory(lambda: run(program, limits))
        assert not outcome.passed
        assert outcome.seconds < 15, outcome
        assert any(part in outcome.result for part in ("more memory", "No space left", "Cannot allocate")), outcome
        if lost < 700 << 20:
            return
    raise AssertionError(f"{lost >> 20} MB")


def with_lost_memory(work: Callable[[], Outcome]) -> tuple[Outcome, int]:
    """The result, and by how many bytes the machine's free memory fell at most."""
    least = free = psutil.virtual_memory().available
    ended = threading.Event()

    def look() -> None:
        nonlocal least
        while not ended.wait(0.01):
            least = min(least, psutil.virtual_memory().available)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        outcome = work()
    finally:
        ended.set()
        thread.join()
    return outcome, free - least


def processes_with(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


def test_nothing_that_a_program_starts_outlives_it(run: Run) -> None:
    """Processes that leave the group, hide from signals, and start others as they go."""
    mark = f"sleeper-{os.getpid()}"
    code = (
        "import os, signal, sys, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "for i in range(10):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        f"            os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])\n"
        "        os._exit(0)\n"
        "time.sleep(100)\n"
    )
    outcome = run(code, Limits(seconds=1.0))
    assert not outcome.passed
    assert processes_with(mark) == []


@isolates
def test_a_program_dies_with_a_killed_parent() -> None:
    mark = f"orphan-{os.getpid()}"
    inside = (
        "import os, signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nos.setsid()\n"
        f"os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(300)', {mark!r}])"
    )
    outside = f"from coe_native.evaluation.sandbox import *; open_sandbox(Limits(seconds=200.0)).run({inside!r})"
    parent = subprocess.Popen([sys.executable, "-c", outside])
    try:
        for _ in range(600):
            if processes_with(mark):
                break
            time.sleep(0.05)
        assert processes_with(mark)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(100):
        if not processes_with(mark):
            break
        time.sleep(0.05)
    assert processes_with(mark) == []


@isolates
def test_honest_programs_can_do_what_they_need(run: Run) -> None:
    outcome = run(
        """
import asyncio, concurrent.futures, json, multiprocessing, pickle, subprocess, sys, tempfile, time
with tempfile.NamedTemporaryFile('w+') as file:
    file.write('x')
asyncio.run(asyncio.sleep(0))
def double(x):
    return 2 * x
class Point:
    pass
with multiprocessing.Pool(2) as pool:
    assert pool.map(double, [1, 2]) == [2, 4]
assert isinstance(pickle.loads(pickle.dumps(Point())), Point)
with concurrent.futures.ThreadPoolExecutor(24) as threads:
    assert sum(threads.map(lambda i: (time.sleep(0.1), len(bytes(i)))[1], range(24))) == 276
assert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout == b'1\\n'
""",
        Limits(),
    )
    assert outcome.passed, outcome


def test_a_program_cannot_keep_its_result_from_being_read(run: Run) -> None:
    """By changing how the file is read in which it is written."""
    outcome = run(
        "import fcntl\nfor fd in range(3, 9):\n    try: fcntl.fcntl(fd, fcntl.F_SETFL, 0o40000)\n"
        "    except OSError: pass",
        QUICK,
    )
    assert outcome.result in ("passed", "ended before its last statement")


@isolates
def test_shared_memory_counts_once() -> None:
    """A pool of workers that only read a large table takes no more memory than the table."""
    outcome = open_sandbox(Limits(memory=400 << 20)).run(
        "import multiprocessing\ntable = bytearray(b'x') * (150 << 20)\n"
        "with multiprocessing.Pool(8) as pool:\n"
        "    assert pool.map(abs, range(8)) == list(range(8))\n"
        "import time; time.sleep(0.3)"
    )
    assert outcome.passed, outcome


@isolates
def test_an_interpreter_in_tmp_is_found(tmp_path: Path) -> None:
    """Whose files the sandbox's own /tmp must not hide."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
        code = 'from coe_native.evaluation.sandbox import *; print(open_sandbox().run(\'open("/tmp/x", "w")\'))'
        ran = subprocess.run(
            [str(directory / "bin" / "python"), "-c", code],
            env={"PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert "passed=True" in ran.stdout, ran
    finally:
        shutil.rmtree(directory)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can start another user's processes"
)
def test_unisolated_programs_may_start_threads_whatever_else_runs() -> None:
    nobody = pwd.getpwnam("nobody")
    others = [
        subprocess.Popen(["sleep", "60"], user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], cwd="/")
        for _ in range(40)
    ]
    try:
        said = as_nobody(
            "from coe_native.evaluation.sandbox import *; print(Sandbox(Limits(), 'x').run("
            "'import threading; t = threading.Thread(target=int); t.start(); t.join()'))"
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert "passed=True" in said


@isolates
def test_packages_of_this_environment_can_be_imported() -> None:
    outcome = open_sandbox().run("import numpy\nassert (numpy.ones((9, 9)) @ numpy.ones(9)).sum() == 81")
    assert outcome.passed, outcome


def fake_bubblewrap(directory: Path, script: str) -> None:
    program = directory / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "bubblewrap is not installed; install your system's package bubblewrap"),
        (
            "echo 'bwrap: No permissions to create new namespace' >&2; exit 1",
            "No permissions to create new namespace",
        ),
        # It starts the program and isolates nothing.
        (
            f'while [ "$1" != -- ]; do shift; done; exec {sys.executable} -I {{runner}}',
            "harmless program failed|watched",
        ),
        ("exit 0", "no reason given"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_without_isolation_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, why: str
) -> None:
    if script is not None:
        fake_bubblewrap(tmp_path, script.format(runner=coe_native.evaluation.bubblewrap.RUNNER))
    monkeypatch.setenv("PATH", f"{tmp_path}:/nowhere" if script is None else f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CoeError, match=why) as caught:
        open_sandbox()
    assert "--allow-unisolated" in str(caught.value)
    allowed = open_sandbox(allow_unisolated=True)
    assert not allowed.isolated
    outcome = allowed.run("x = 1")
    assert (outcome.passed, outcome.isolated) == (True, False)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(coe_native.evaluation.sandbox.sys, "platform", platform)
    with pytest.raises(CoeError, match="Linux"):
        open_sandbox()


@isolates
def test_a_bubblewrap_that_cannot_limit_a_tmpfs_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of before 0.7. What lies in /tmp is still watched."""
    real = shutil.which("bwrap")
    fake_bubblewrap(
        tmp_path,
        f'[ "$1" = --help ] && exit 0; for a; do [ "$a" = --size ] && exit 1; done; exec {real} "$@"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    outcome = open_sandbox(Limits(memory=200 << 20)).run(
        "for i in range(100):\n    open(f'/tmp/{i}', 'wb').write(bytes(15 << 20))\nimport time; time.sleep(60)"
    )
    assert outcome.isolated
    assert outcome.result == "took more memory than it may"


def test_a_program_without_isolation_still_has_limits() -> None:
    sandbox = Sandbox(QUICK, "for a test")
    assert sandbox.run("while True: pass").result == "took longer than 2 seconds"
    assert "memory" in sandbox.run("x = [0] * 10**10").result
