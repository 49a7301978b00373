"""Programs for contest problems: right, wrong, slow, crashing and hostile ones."""

from __future__ import annotations

import os
import time

import pytest

from coe_native.evaluation.contest import LIMITS, ContestProblem, ContestTest
from coe_native.evaluation.sandbox import Sandbox, open_sandbox

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="tests need os.fork")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """The programs here are our own, so they may also run where nothing can isolate them."""
    return open_sandbox(LIMITS, allow_unisolated=True)


def problem(tests: list[tuple[str, str]], method: str = "", starter: str = "") -> ContestProblem:
    cases = tuple(ContestTest(given, wanted, method) for given, wanted in tests)
    return ContestProblem("p", "Text", starter, "easy", None, method, cases)


ADD = problem([(f"{a} {b}\n", f"{a + b}\n") for a, b in ((1, 2), (30, -4), (0, 0), (10**12, 1))])
MERGE = problem(
    [("[1, 2]\n[3]", "[1, 2, 3]"), ("[]\n[]", "[]"), ("[[1]]\n[2.5]", "[[1], 2.5]")],
    "merge",
    "class Solution:\n    def merge(self, a: List[int], b: List[int]) -> List[int]:\n        ",
)

RIGHT = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "in a fence": "So:\n```python\na, b = map(int, input().split())\nprint(a + b)\n```\nDone.",
    "in the last fence": "```\nprint(0)\n```\n```python\na, b = map(int, input().split())\nprint(a + b)\n```",
    "after thinking": "<think>\n```python\nprint(0)\n```\n</think>\n"
    "```python\nprint(sum(map(int, input().split())))\n```",
    "stdin read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "stdin buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.readline().split())))",
    "stdin lines": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "descriptor": "print(sum(map(int, open(0).read().split())))",
    "main": "def main():\n    print(sum(map(int, input().split())))\n\nif __name__ == '__main__':\n    main()",
    "decimals": "print('%.3f' % sum(map(int, input().split())))",
    "blanks": "print('\\n ', sum(map(int, input().split())), ' \\n\\n')",
    "without imports": "print(reduce(add, map(int, input().split())))\nheappush([], 1)\nassert gcd(4, 6) == 2",
    "exit": "print(sum(map(int, input().split())))\nexit(1)",
    "exit at once": "import os\nprint(sum(map(int, input().split())), flush=True)\nos._exit(0)",
    "at exit": "import atexit\nn = sum(map(int, input().split()))\natexit.register(lambda: print(n))",
    "own stream": "import io, sys\nsys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))\n"
    "print(sum(map(int, input().split())))",
    "a deep thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
    "def f(n): return 0 if n == 0 else f(n - 1)\n"
    "def main(): print(sum(map(int, input().split())) + f(20000))\nthreading.Thread(target=main).start()",
    "numpy": "import numpy as np\nprint(np.array(input().split(), np.int64).sum())",
}

WRONG = {
    "another number": ("print(3)", "test 2 of 4"),
    "no output": ("pass", "test 1 of 4"),
    "an extra line": ("print(sum(map(int, input().split())))\nprint()\nprint(0)", "output"),
    "an error after the output": ("print(sum(map(int, input().split())))\n1 / 0", "ZeroDivisionError"),
    "a syntax error": ("print(", "SyntaxError"),
    "a wrong digit far away": (
        "n = sum(map(int, input().split()))\nprint(n if n < 10**6 else n - 1)",
        "test 4 of 4",
    ),
    "forever": ("while True: pass", "longer than 1"),
    "asleep": ("import time\ntime.sleep(60)", "longer than 1"),
    "in a thread that never ends": ("import threading\nthreading.Event().wait()", "longer than 1"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "too much memory": ("x = [0] * 10**10", "memory"),
    "too much output": ("print('x' * (1 << 20))", "too much"),
    "deep recursion": ("def f(): return f()\nf()", "RecursionError|signal"),
    "a nul byte": ("print('\\0')\n", "output"),
}

HOSTILE = {
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills all": "import os\nos.kill(-1, 9)",
    "leaves at once": "import os\nos._exit(0)",
    "writes answers to every descriptor": "import os\nfor d in range(3, 64):\n    try: os.write(d, b'3\\n')\n"
    "    except OSError: pass",
    "writes answers to its parent's descriptors": (
        "import glob, os\nfor path in glob.glob(f'/proc/{os.getppid()}/fd/*') + glob.glob('/proc/1/fd/*'):\n"
        '    try: open(path, \'w\').write(\'test- [0, {"error": null, "output": "3"}]\\n\')\n'
        "    except OSError: pass"
    ),
    "repeats the public test's answer under the runner's name": (
        "import gc, glob, json, os, sys\nproof = next(o['proof'] for o in gc.get_objects() "
        "if isinstance(o, dict) and 'proof' in o)\n"
        "for path in glob.glob(f'/proc/{os.getppid()}/fd/*'):\n    try:\n        with open(path, 'w') as file:\n"
        "            for n in range(4): print(f'test-{proof}', json.dumps([n, {'error': None, 'output': '3'}]), "
        "file=file)\n    except OSError: pass\nprint(3)"
    ),
    "claims to pass": (
        "import gc\nproof = next(o['proof'] for o in gc.get_objects() if isinstance(o, dict) and 'proof' in o)\n"
        "print(f'passed {proof}')"
    ),
    "looks for the answers": (
        "import gc\nprint(next((o for o in gc.get_objects() if isinstance(o, dict) and 'output' in o and "
        "'1000000000001' in str(o['output'])), 0))"
    ),
    "changes what compares": "import builtins, json\nbuiltins.str.__eq__ = None",
    "forks": "import os, time\nfor _ in range(1000):\n    if os.fork() == 0: time.sleep(60)",
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_programs_pass(sandbox: Sandbox, name: str) -> None:
    outcome = ADD.judge(RIGHT[name], sandbox)
    assert outcome.passed, outcome
    assert outcome.result == "passed"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_slow_and_crashing_programs_fail_with_the_reason(sandbox: Sandbox, name: str) -> None:
    answer, why = WRONG[name]
    outcome = ADD.judge(answer, sandbox, seconds=1.0)
    assert not outcome.passed
    assert any(part in outcome.result for part in why.split("|")), outcome
    assert "\n" not in outcome.result


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail(sandbox: Sandbox, name: str) -> None:
    if not sandbox.isolated:
        pytest.skip("they would do harm")
    started = time.monotonic()
    outcome = ADD.judge(HOSTILE[name], sandbox, seconds=1.0)
    assert not outcome.passed, outcome
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("return a + b", True),
        ("```python\nclass Solution:\n    def merge(self, a, b):\n        return a + b\n```", True),
        ("class Solution:\n    def merge(self, a, b):\n        return tuple(a + b)", True),
        ("def merge(a, b):\n    return a + b", True),
        ("```\nmerge([1], [2])\n```\n```\nclass Solution:\n    def merge(self, a, b): return a + b\n```", True),
        ("class Solution:\n    def merge(self, a, b):\n        print('noise')\n        return a + b", True),
        ("class Solution:\n    def merge(self, a, b):\n        return a", False),
        ("class Solution:\n    def merge(self, a, b):\n        return set(map(str, a + b))", False),
        ("class Solution:\n    def merge(self, a, b):\n        exit()", False),
        ("class Solution:\n    def other(self, a, b):\n        return a + b", False),
        (
            "class Yes(list):\n    def __eq__(self, other): return True\n"
            "class Solution:\n    def merge(self, a, b): return Yes()",
            False,
        ),
        (
            "class Yes:\n    def __eq__(self, other): return True\n"
            "class Solution:\n    def merge(self, a, b): return Yes()",
            False,
        ),
        (
            "class Solution:\n    def merge(self, a, b):\n"
            "        return [tuple(a[0]), *b] if a == [[1]] else a + b",
            False,
        ),
    ],
)
def test_methods_are_called_and_their_values_compared(sandbox: Sandbox, answer: str, passes: bool) -> None:
    outcome = MERGE.judge(answer, sandbox, seconds=2.0)
    assert outcome.passed == passes, outcome


def test_numbers_of_numpy_count_as_numbers(sandbox: Sandbox) -> None:
    total = problem([("[1, 2]", "3"), ("[0.5]", "0.5")], "total", "def total(values):\n    ")
    assert total.judge("import numpy as np\n    return np.sum(values)", sandbox).passed


def test_large_tests_go_in_and_out(sandbox: Sandbox) -> None:
    numbers = " ".join(map(str, range(300_000)))
    echo = problem([(f"{numbers}\n", numbers.replace(" ", "\n"))] * 3)
    assert echo.judge("print(*input().split(), sep='\\n')", sandbox).passed
    digits = problem([("20000\n", "9" * 20_000)])
    assert digits.judge("print(10 ** int(input()) - 1)", sandbox).passed


def test_a_slow_test_does_not_take_the_time_of_the_next(sandbox: Sandbox) -> None:
    """The limit is for each test."""
    slow = problem([("1\n", "1\n")] * 4)
    assert slow.judge("import time\ntime.sleep(0.6)\nprint(1)", sandbox, seconds=1.0).passed
