"""The judge of contest problems, on right, wrong, slow, crashing and hostile programs."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from support.contest import Cases, contest_problem, officially_same_output

from coe_native.errors import CoeError
from coe_native.evaluation.contest import LIMITS, ContestTest
from coe_native.evaluation.sandbox import Outcome, Sandbox, _why_failed, open_sandbox

SUM: Cases = (("3\n1 2 3\n", "6\n"), ("1\n5\n", "5\n"), ("2\n-5 5\n", "0\n"))
"""The sum of some numbers, after their number."""

METHOD: Cases = (("[1, 2, 3]\n10", "[16, [1, 2, 3]]"), ("[]\n0", "[0, []]"))
"""The sum of numbers with a start, and the numbers."""

SECRET = "found-8675309"


def why_not_here() -> str:
    try:
        open_sandbox(LIMITS)
    except CoeError as error:
        return str(error)
    return ""


WHY_NOT = why_not_here()
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="programs are run for tests on Linux and macOS only"
)
isolates = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "isolation works")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """Programs here that could do harm without isolation run only where there is one."""
    return open_sandbox(LIMITS, allow_unisolated=True)


def judged(sandbox: Sandbox, program: str, cases: Cases = SUM, method: str = "", seconds: float = 5.0) -> Outcome:
    return contest_problem(cases, method).judge(program, sandbox, seconds)


RIGHT = {
    "input()": "input()\nprint(sum(map(int, input().split())))",
    "a main guard": "def main():\n    input(); print(sum(map(int, input().split())))\n"
    "if __name__ == '__main__':\n    main()",
    "sys.stdin.read": "import sys\n_, *xs = sys.stdin.read().split()\nprint(sum(map(int, xs)))",
    "sys.stdin, line by line": "import sys\nlines = [line for line in sys.stdin]\n"
    "print(sum(map(int, lines[1].split())))",
    "sys.stdin.buffer": "import sys\n_, *xs = sys.stdin.buffer.read().split()\nprint(sum(map(int, xs)))",
    "open(0)": "_, *xs = open(0).read().split()\nprint(sum(map(int, xs)))",
    "os.read": "import os\n_, *xs = os.read(0, os.fstat(0).st_size).split()\n"
    "os.write(1, str(sum(map(int, xs))).encode())",
    "sys.__stdin__": "import sys\n_, *xs = sys.__stdin__.read().split()\n"
    "sys.__stdout__.write(str(sum(map(int, xs))))",
    "names that the grader imports": "n = int(stdin.readline())\n"
    "print(reduce(add, map(int, stdin.readline().split())))",
    "types that the grader imports": "def f(xs: List[int]) -> Optional[int]:\n    return sum(xs)\n"
    "input()\nprint(f([int(x) for x in input().split()]))",
    "sys.exit": "import sys\ninput(); print(sum(map(int, input().split()))); sys.exit(1)",
    "exit()": "input(); print(sum(map(int, input().split()))); exit()",
    "os._exit after a flush": "import os\ninput(); print(sum(map(int, input().split())), flush=True); os._exit(1)",
    "print at the end": "import atexit, sys\n_, *xs = sys.stdin.read().split()\n"
    "atexit.register(print, sum(map(int, xs)))",
    "a buffer written at the end": "import atexit, io, os, sys\nsys.stdout = io.StringIO()\n"
    "atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))\n"
    "input(); print(sum(map(int, input().split())))",
    "another sys.stdout": "import io, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\n"
    "input(); print(sum(map(int, input().split())))",
    "a closed sys.stdout": "import sys\ninput(); print(sum(map(int, input().split()))); sys.stdout.close()",
    "no sys.stdout in the end": "import sys\ninput(); print(sum(map(int, input().split()))); sys.stdout = None",
    "a thread with deep recursion": "import sys, threading\nsys.setrecursionlimit(10**6)\n"
    "threading.stack_size(1 << 27)\n"
    "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
    "def main():\n    input(); print(sum(map(int, input().split())) + down(10**5) - 10**5)\n"
    "threading.Thread(target=main).start()",
    "a thread of a thread": "import threading, time\n"
    "def later():\n    time.sleep(0.1); input(); print(sum(map(int, input().split())))\n"
    "threading.Thread(target=lambda: threading.Thread(target=later).start()).start()",
    "a thread that never ends": "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
    "input(); print(sum(map(int, input().split())))",
    "deep recursion": "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
    "input(); print(sum(map(int, input().split())) + down(20000) - 20000)",
    "another process": "import subprocess, sys\ncode = 'input(); print(sum(map(int, input().split())))'\n"
    "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)",
    "a large number": "input(); x = sum(map(int, input().split())); print(len(str(10**9999)) - 10000 + x)",
    "noise on standard error": "import sys\nprint('x' * 10**6, file=sys.stderr)\n"
    "input(); print(sum(map(int, input().split())))",
    "blanks and zeros": "input(); print(f'\\n  {sum(map(int, input().split())):.4f}  \\n')",
    "a class that is pickled": "import copy, pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))\n"
    "input(); print(sum(map(int, input().split())))",
    "NumPy": "import numpy as np\ninput(); print(np.array(input().split(), np.int64).sum())",
    "after thinking": "<think>\n```python\nprint(0)\n```\n</think>\n"
    "```python\ninput()\nprint(sum(map(int, input().split())))\n```",
    "a block of an answer": "Here:\n```python\ninput()\nprint(sum(map(int, input().split())))\n```\n",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_pass(sandbox: Sandbox, name: str) -> None:
    outcome = judged(sandbox, RIGHT[name])
    assert outcome.passed, outcome
    assert outcome.result == "passed"


WRONG = {
    "nothing": ("", "test 1 of 3: printed another output"),
    "the wrong number": ("print(7)", "test 1 of 3: printed another"),
    "right for the first test only": ("print(6)", "test 2 of 3: printed another"),
    "right but for the last test": (
        "input(); print(sum(map(int, input().split())) or 1)",
        "test 3 of 3: printed another",
    ),
    "one more line": ("input(); print(sum(map(int, input().split())))\nprint(0)", "printed another"),
    "a prompt": ("input('n: '); print(sum(map(int, input().split())))", "printed another"),
    "a syntax error": ("print(", "SyntaxError"),
    "a NUL": ("print(6)\x00", "Error"),
    "half of a surrogate pair": ("print('\ud800')", "Error|printed another"),
    "an exception after the right output": (
        "input(); print(sum(map(int, input().split())))\n1/0",
        "ZeroDivisionError",
    ),
    "input beyond the end": ("input(); input(); input()", "EOFError"),
    "a loop without end": ("while True: pass", "longer than"),
    "a sleep": ("import time; time.sleep(99)", "longer than"),
    "a thread without end": (
        "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
        "longer",
    ),
    "too much memory": ("x = bytearray(5 << 30)", "memory"),
    "recursion without end": ("def f(): f()\nf()", "RecursionError|signal"),
    "a crash of Python": ("import ctypes; ctypes.string_at(0)", "signal 11"),
    "an abort": ("import os; os.abort()", "signal 6"),
    "its own exception": ("class E(BaseException): pass\nraise E('why\\nnot')", "E: why not"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "os._exit": ("import os\nprint(6); os._exit(0)", "printed another"),  # what was buffered is lost
    "a gigabyte of output": ("line = 'x' * (1 << 20)\nfor _ in range(1 << 10): print(line)", "large|too much"),
    "output without line ends": ("import os\nwhile True: os.write(1, b'6' * (1 << 20))", "large|too much"),
    "too many files": ("files = [open('/dev/null') for _ in range(10**4)]", "files"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_programs_fail_with_a_reason(sandbox: Sandbox, name: str) -> None:
    program, reason = WRONG[name]
    started = time.monotonic()
    outcome = judged(sandbox, program, seconds=1.0 if "longer" in reason else 5.0)
    assert not outcome.passed
    assert any(part in outcome.result for part in reason.split("|")), outcome
    assert "\n" not in outcome.result
    assert time.monotonic() - started < 10


METHODS = {
    "a method": ("class Solution:\n    def f(self, xs, start):\n        return [sum(xs) + start, xs]", True),
    "types without an import": (
        "class Solution:\n    def f(self, xs: List[int], start: int) -> List[Any]:\n"
        "        return [sum(xs) + start, xs]",
        True,
    ),
    "a function": ("def f(xs, start):\n    return [sum(xs, start), xs]", True),
    "a tuple": ("def f(xs, start):\n    return sum(xs, start), xs", True),
    "a cached helper": (
        "@cache\ndef g(n): return n\nclass Solution:\n    def f(self, xs, start):\n"
        "        return [sum(xs) + g(start), xs]",
        True,
    ),
    "output beside": ("def f(xs, start):\n    print('debug')\n    return [sum(xs, start), xs]", True),
    "a float": ("def f(xs, start):\n    return [float(sum(xs, start)), xs]", True),
    "what continues the starter code": ("return [sum(xs) + start, xs]", True),
    "numbers of NumPy": (
        "import numpy as np\ndef f(xs, start):\n    return [np.sum(xs, dtype=int) + start, xs]",
        True,
    ),
    "a list of its own": ("class L(list): pass\ndef f(xs, start):\n    return L([sum(xs, start), xs])", True),
    "a tuple within": ("def f(xs, start):\n    return [sum(xs, start), tuple(xs)]", False),
    "a text": ("def f(xs, start):\n    return str([sum(xs, start), xs])", False),
    "printed, not returned": ("def f(xs, start):\n    print([sum(xs, start), xs])", False),
    "another name": ("def g(xs, start):\n    return [sum(xs, start), xs]", False),
    "another number of arguments": ("def f(xs):\n    return [sum(xs), xs]", False),
    "a generator": ("def f(xs, start):\n    yield sum(xs, start)\n    yield xs", False),
    "a set": ("def f(xs, start):\n    return {sum(xs, start)}", False),
    "a value that contains itself": ("def f(xs, start):\n    xs.append(xs)\n    return xs", False),
    "exit": ("def f(xs, start):\n    exit()", False),
    "always equal": (
        "class E:\n    def __eq__(self, other): return True\n    __ne__ = __eq__\ndef f(xs, start):\n"
        "    return E()",
        False,
    ),
    "a list that is always equal": (
        "class E(list):\n    def __eq__(self, other): return True\ndef f(xs, start):\n    return E()",
        False,
    ),
    "a number that is always equal": (
        "class E(int):\n    def __eq__(self, other): return True\n    def __int__(self): return 0\n"
        "def f(xs, start):\n    return [E(), E()]",
        False,
    ),
    "a class that pretends": (
        "class E:\n    __class__ = list\n    def __iter__(self): yield 1\ndef f(xs, start):\n    return E()",
        False,
    ),
    "another json": (
        "import json\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: '[16, [1, 2, 3]]'\n"
        "def f(xs, start):\n    return 0",
        False,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_value_is_what_counts(sandbox: Sandbox, name: str) -> None:
    program, passes = METHODS[name]
    outcome = judged(sandbox, program, METHOD, "f")
    assert outcome.passed == passes, outcome
    assert "\n" not in outcome.result


LOOK_EVERYWHERE = """
import gc, os, re, sys

def texts():
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals) + repr(frame.f_globals)
        frame = frame.f_back
    for each in gc.get_objects():
        try:
            yield repr(each)[:10**6]
        except BaseException:
            pass
    for process in os.listdir('/proc'):
        for name in ('environ', 'cmdline', 'fd/0', 'fd/1', 'fd/3', 'fd/4', 'fd/5', 'fd/6', 'fd/7', 'fd/8'):
            try:
                descriptor = os.open(f'/proc/{process}/{name}', os.O_RDONLY | os.O_NONBLOCK)
                yield os.pread(descriptor, 10**6, 0).decode('latin-1')
            except (OSError, ValueError):
                pass
        try:
            maps = open(f'/proc/{process}/maps').read()
            memory = os.open(f'/proc/{process}/mem', os.O_RDONLY)
            for begin, end in re.findall('^([0-9a-f]+)-([0-9a-f]+) rw', maps, re.M):
                begin, end = int(begin, 16), int(end, 16)
                yield os.pread(memory, min(end - begin, 1 << 26), begin).decode('latin-1')
        except (OSError, ValueError):
            pass

for text in texts():
    for found in re.findall('found' + '-[0-9]{7}', text):
        sys.__stdout__.write(found)
        sys.__stdout__.flush()
        os._exit(0)
"""


@isolates
def test_what_a_test_expects_is_nowhere_to_be_found(sandbox: Sandbox) -> None:
    """The same program finds a text that is in a later test's input, so it does look."""
    hidden = judged(sandbox, LOOK_EVERYWHERE, (("1", SECRET), ("2", SECRET)), seconds=20)
    assert not hidden.passed
    assert "printed another output" in hidden.result
    assert judged(sandbox, LOOK_EVERYWHERE, (("1", SECRET), (SECRET, SECRET)), seconds=20).passed


FORGE = """
import glob, os, sys, time
frame = sys._getframe()
while 'task' not in frame.f_locals:
    frame = frame.f_back
proof = frame.f_locals['task']['proof']
lines = ''.join(f'test-{proof} [{n}, {{"error": null, "output": OUTPUT}}]\\n"
    "' for n in range(3)) + f'passed {proof}\\n'
n_written = 0
for place in glob.glob('/proc/*/fd/*'):
    try:
        os.write(os.open(place, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK), lines.encode())
        n_written += 1
    except OSError:
        pass
assert n_written
time.sleep(AFTER)
"""


@isolates
@pytest.mark.parametrize("after", ["0.2", "99"])
@pytest.mark.parametrize("output", ["6", '"6"', "null", '{"error": null}', "[" * 9000])
def test_forged_results_do_not_pass(sandbox: Sandbox, output: str, after: str) -> None:
    """They count as outputs, and a program that cannot compute those cannot forge them."""
    program = FORGE.replace("OUTPUT", output).replace("AFTER", after)
    outcome = judged(sandbox, program, seconds=1.0)
    assert not outcome.passed
    assert "\n" not in outcome.result


HOSTILE = {
    "kills the runner": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "kills everything": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "interrupts the runner": "import os, signal; os.kill(os.getppid(), signal.SIGINT)",
    "forks without end": "import os\nwhile True: os.fork()",
    "forks and leaves": "import os\nwhile True:\n    if os.fork() == 0: os.setsid()",
    "starts threads without end": "import threading, time\n"
    "while True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "fills the disk": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 23))",
    "fills the disk with empty files": "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n:0200}', 'w')",
    "changes builtins": "import builtins, json, os\n"
    "builtins.str = builtins.len = builtins.print = lambda *a, **k: '6'\n"
    'json.dumps = lambda *a, **k: \'{"error": null, "output": "6"}\'\nos._exit = lambda code: None',
    "changes what runs at the end": "import atexit, threading\n"
    "atexit._run_exitfuncs = threading.enumerate = lambda: 1/0",
    "closes all descriptors": "import os; os.closerange(0, 64)",
    "truncates all descriptors": "import os\nfor n in range(64):\n"
    "    try: os.ftruncate(n, 0); os.write(n, b'6')\n    except OSError: pass",
    "ignores signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\n"
    "while True: pass",
    "a grandchild that goes on": "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    "    while True: time.sleep(1)",
    "reads what comes next": "import os\nprint(os.read(0, 100))\nprint(open('/runner.py').read())",
    "debugs the runner": "import ctypes, os\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
    "opens a connection": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
}


@isolates
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_end(sandbox: Sandbox, name: str) -> None:
    started = time.monotonic()
    outcome = judged(sandbox, HOSTILE[name], seconds=1.0)
    assert not outcome.passed
    assert outcome.isolated
    assert "\n" not in outcome.result
    assert time.monotonic() - started < 20
    assert judged(sandbox, RIGHT["input()"]).passed, "the next program is judged as if nothing had been"


@isolates
@pytest.mark.slow
def test_a_stopped_runner_is_not_waited_for_without_end(sandbox: Sandbox) -> None:
    outcome = judged(sandbox, "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)", seconds=0.5)
    assert not outcome.passed
    assert outcome.seconds < 15


def test_the_time_limit_is_that_of_each_test(sandbox: Sandbox) -> None:
    sleeps = "import time; time.sleep(0.5); input(); print(sum(map(int, input().split())))"
    assert judged(sandbox, sleeps, seconds=1.2).passed
    too_slow = judged(sandbox, sleeps, seconds=0.3)
    assert too_slow.result.startswith("test 1 of 3: took longer than 0.3 seconds")


def test_the_first_test_that_fails_ends_the_run(sandbox: Sandbox) -> None:
    program = "import time\nif input() == '1': print(1 / 0)\ntime.sleep(0.1); print('no')"
    outcome = judged(sandbox, program, (("0", "no"), ("1", ""), *(("0", "no"),) * 50))
    assert outcome.result.startswith("test 2 of 52: ZeroDivisionError")
    assert outcome.seconds < 4


def test_many_tests_need_one_start(sandbox: Sandbox) -> None:
    cases = [(f"1\n{number}\n", f"{number}\n") for number in range(40)]
    outcome = judged(sandbox, RIGHT["input()"], cases)
    assert outcome.passed, outcome
    assert outcome.seconds < 10


def test_large_inputs_and_outputs_arrive_whole(sandbox: Sandbox) -> None:
    numbers = " ".join(map(str, range(700_000)))
    cases = [(f"{numbers}\n", "\n".join(numbers.split()) + "\n"), ("é→😀\n", "é→😀\n")]
    outcome = judged(sandbox, "print('\\n'.join(input().split()))", cases)
    assert outcome.passed, outcome
    text = "😀" * 20_000
    outcome = judged(sandbox, "def f(x):\n    return x", [(f'"{text}"', f'"{text}"')], "f")
    assert outcome.passed, outcome


def test_verdicts_on_what_programs_print_are_the_official_ones(sandbox: Sandbox) -> None:
    """Each program prints its input; what is expected is another of these texts."""
    texts = (
        "1",
        "1.0\n",
        " 1 \n\n",
        "1\n\n2",
        "1\n2",
        "1 2",
        "1  2.0",
        "a",
        "A",
        "",
        "\n",
        "nan",
        "a b",
        "a  b",
        "1\r\n2",
    )
    pairs = list(itertools.product(texts, texts))
    echo = "import sys; sys.stdout.write(sys.stdin.read())"
    for printed, expected in pairs[:: len(texts) - 1]:
        outcome = judged(sandbox, echo, [(printed, expected)])
        assert outcome.passed == officially_same_output(printed, expected), (printed, expected, outcome)
    right = [pair for pair in pairs if officially_same_output(*pair)]
    assert judged(sandbox, echo, right).passed
    assert len(right) > len(texts)


def test_standard_input_has_its_usual_names(sandbox: Sandbox) -> None:
    for name in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        assert judged(sandbox, f"print(sum(map(int, open('{name}').read().split()[1:])))").passed, name


@pytest.mark.parametrize(
    "answer",
    [
        '[0, {"error": null, "output": "3"}]',
        "[1]",
        "{}",
        '[1, {"error": null, "output": 3}]',
        '[1, {"output": "3"}]',
        "[[",
    ],
)
def test_only_the_next_tests_own_result_counts(answer: str) -> None:
    """A program that repeats the right result of a test that it knows passes no other test with it."""
    tests = [ContestTest("", "3"), ContestTest("", "3")]
    assert _why_failed(tests, 1, '[1, {"error": null, "output": "3"}]') == ""
    assert _why_failed(tests, 1, answer) == "it interfered with the runner"
