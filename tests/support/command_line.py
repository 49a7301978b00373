"""The command ``coe-native`` as a user runs it: whole processes, judged by status, stdout, stderr and files."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coe_native.recipes import demo

_BESIDE = Path(sys.executable).with_name("coe-native")
COMMAND = str(_BESIDE) if _BESIDE.exists() else shutil.which("coe-native") or "coe-native"

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in {"FORCE_COLOR", "TTY_COMPATIBLE"}},
    "GGML_NO_BACKTRACE": "1",  # a crash must not wait for a debugger
}
RUN = ("--threads", "1", "--ctx", "64", "--batch", "64")
"""One thread, and batches of one window."""

TWO_THREADS = ("--threads", "2")


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object, cwd: Path | None = None, stdin: bytes = b"", **options: Any) -> Done:
    """Run ``coe-native`` without a terminal: no progress bars, no colours, and never a traceback."""
    line = [COMMAND, *map(str, arguments)]
    process = subprocess.run(
        line, cwd=cwd, input=stdin, env=ENVIRONMENT, capture_output=True, timeout=300, check=False, **options
    )
    done = Done(process.returncode, process.stdout.decode(), process.stderr.decode())
    for text in (done.out, done.err):
        assert "Traceback" not in text, text
        assert not re.search(r"[\r\x1b━]", text), text
    return done


def ok(*arguments: object, **options: Any) -> Done:
    """Run a command that must succeed."""
    done = run(*arguments, **options)
    assert done.status == 0, done.err
    return done


def report(*arguments: object, **options: Any) -> Any:
    """Return the object that a command prints with ``--json``. It prints nothing else on stdout."""
    return ok(*arguments, "--json", **options).json


@dataclass(frozen=True)
class Made:
    """Three quantisations of one family's model; a profile of the smallest and its mask, made by commands."""

    files: dict[str, Path]
    corpus: Path
    profile: Path
    mask: Path
    profile_report: dict[str, Any]
    mask_report: dict[str, Any]


one_family = pytest.mark.parametrize("made", ["qwen3moe"], indirect=True)
"""For what does not depend on the architecture."""


def listing(directory: Path) -> dict[Path, tuple[int, int]]:
    """Return mode and modification time of everything below a directory."""
    found = ((path, path.lstat()) for path in sorted(directory.rglob("*")))
    return {path: (info.st_mode, info.st_mtime_ns if path.is_file() else 0) for path, info in found}


def refuse(directory: Path, *arguments: object, **options: Any) -> Done:
    """Run a command that must fail: it prints nothing on stdout and leaves the directory as it was."""
    before = listing(directory)
    try:
        done = run(*arguments, cwd=directory, **options)
        assert listing(directory) == before
    finally:
        for left in listing(directory).keys() - before.keys():  # would confuse the next test
            left.unlink() if left.is_file() else left.rmdir()
    assert not done.out
    return done


def one_line(done: Done) -> str:
    """Return the one line that a failed command prints on stderr."""
    assert done.err.startswith("coe-native: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    return done.err


def words_of(line: str) -> list[str]:
    """Split a command line as a shell does; DEMO is the model of the demo."""
    return [str(demo.MODEL) if word == "DEMO" else word for word in shlex.split(line)]


def check_input_refused(directory: Path, line: str, pattern: str, status: int = 2) -> None:
    """Check that a command fails with one line that matches a pattern."""
    done = refuse(directory, *words_of(line))
    assert re.search(pattern, one_line(done)), done.err
    assert done.status == status


def check_options_refused(directory: Path, line: str, pattern: str) -> None:
    """Check that options that make no sense are refused, by the parser or by the command."""
    done = refuse(directory, *words_of(line))
    if done.err.startswith("Usage: coe-native"):
        assert not line or done.err.splitlines()[-1].startswith("Error: ")
    else:
        one_line(done)
    assert re.search(pattern, done.err), done.err
    assert done.status == 2


def by_line(name: str, lines: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """Parametrise a test with command lines and the pattern that each must print."""
    return pytest.mark.parametrize(("line", name), lines, ids=[line or "nothing" for line, _ in lines])
