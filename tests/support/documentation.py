"""The commands and programs in the documentation, run as a reader would run them.

A page is a Markdown file. What runs in it, in order and in one directory:

- ``console`` blocks: each line that begins with ``$ `` is given to one shell for the page, and what it prints is
  compared with the lines below it. A block with ``title="…"`` is another terminal: its command keeps running, and
  a later block with the same title whose first line is ``^C`` interrupts it.
- ``python`` blocks: each is a program of its own.
- comments ``<!-- run: COMMAND -->``: preparations that the reader does not see. `$REPOSITORY` is the root of ours.

A block after ``<!-- not run: REASON -->`` is left out. Numbers may differ a little, since processors round
differently: see `same_output`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from markdown_it import MarkdownIt

TIMEOUT = 900
"""Seconds that a command may take."""

_NUMBER = re.compile(r"\b[0-9a-f]{12,64}\b|\d[\d,]*(?:\.\d+)?")
_DIRECTORY = re.compile(r"(?<![^\s\"])/(?:[^\s/]+/)+")
_COMMENT = re.compile(r"<!--\s*(run|not run):\s*(.*?)\s*-->", re.DOTALL)


@dataclass
class Command:
    """One command of a console block, and the lines that it is said to print.

    Attributes:
        text: The command, of several lines where they end with a backslash.
        output: Lines below it.
        line: Line of the page on which the output begins, from 0.
    """

    text: str
    line: int
    output: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """What runs in one place of a page.

    Attributes:
        language: ``console``, ``python``, or ``run`` for a preparation.
        text: Its text.
        line: Its first line in the page, from 0.
        terminal: Title of the terminal in which it runs; empty: the page's own.
        skipped: Why it is not run; empty: it is.
    """

    language: str
    text: str
    line: int
    terminal: str = ""
    skipped: str = ""

    def commands(self) -> list[Command]:
        """Return the commands of a console block."""
        found: list[Command] = []
        for number, line in enumerate(self.text.splitlines(), self.line):
            if line.startswith("$ "):
                found.append(Command(line[2:], number + 1))
            elif found and not found[-1].output and found[-1].text.endswith("\\"):
                found[-1].text += "\n" + line
                found[-1].line = number + 1
            elif found:
                found[-1].output.append(line)
            else:
                found.append(Command("", number, [line]))
        return found


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page that run, and those that say why they do not."""
    skipped = ""
    for token in MarkdownIt("commonmark").enable("table").parse(page):
        first = token.map[0] if token.map else 0
        if token.type == "html_block":
            for kind, text in _COMMENT.findall(token.content):
                if kind == "run":
                    yield Block("run", text, first)
                else:
                    skipped = text
        elif token.type == "fence":
            language = token.info.split(" ")[0]
            title = re.search(r'title="([^"]*)"', token.info)
            if language in ("console", "python"):
                yield Block(language, token.content, first + 1, title[1] if title else "", skipped)
            skipped = ""
        elif token.type != "inline":
            skipped = skipped if token.type.endswith("_open") else ""


def same_output(expected: list[str], printed: list[str]) -> bool:
    """Return whether a command printed what the page says.

    Blanks may differ in number, and directories of absolute paths. A line ``...`` stands for any lines. Numbers
    with a decimal point may differ by 3 % or by two units of their last digit (percentages by 0.3 points), digests
    and numbers before ``tokens/s`` by anything; all others must be equal.
    """
    if not expected:
        return not printed
    if expected[0].strip() == "...":
        return any(same_output(expected[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and _same_line(expected[0], printed[0]) and same_output(expected[1:], printed[1:])


def _same_line(expected: str, printed: str) -> bool:
    expected, printed = (_DIRECTORY.sub("/", line) for line in (expected, printed))
    texts = [" ".join(_NUMBER.sub(" # ", line).split()) for line in (expected, printed)]
    if texts[0] != texts[1]:
        return False
    ours, theirs = list(_NUMBER.finditer(expected)), list(_NUMBER.finditer(printed))
    return all(_same_number(a[0], b[0], expected[a.end() :]) for a, b in zip(ours, theirs, strict=True))


def _same_number(expected: str, printed: str, after: str) -> bool:
    if expected == printed or after.startswith(" tokens/s"):
        return True
    if len(expected) >= 12:
        return len(printed) >= 12
    if "." not in expected or "." not in printed:
        return False
    ours, theirs = (float(number.replace(",", "")) for number in (expected, printed))
    last_digits = 2 * 10 ** -len(expected.partition(".")[2])
    return abs(ours - theirs) <= max(0.03 * abs(ours), 0.3 if after.lstrip().startswith("%") else last_digits)


class Terminal:
    """A shell in which commands run one after another, or one that stays in the foreground."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._seen = 0
        self._done = f"done-{uuid.uuid4().hex}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))

    def start(self, command: str) -> None:
        """Start a command; `printed` and `wait` say what becomes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{{ {command}\n}} < /dev/null\nprintf '\\n%s %s\\n' {self._done} $?\n")
        self._process.stdin.flush()

    def wait(self) -> tuple[int, list[str]]:
        """Wait for the command to end; return its status and what it has printed since the last look."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            for index in range(self._seen, len(self._lines)):
                if self._lines[index].startswith(self._done):
                    printed = self._lines[self._seen : index]
                    self._seen = index + 1
                    return int(self._lines[index].split()[1]), _without_end(printed)
            if not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise TimeoutError(f"the command has not ended; it printed {self._lines[self._seen :]}")

    def wait_for_lines(self, number: int) -> list[str]:
        """Wait for a number of lines of a command that keeps running, and return them."""
        end = time.monotonic() + TIMEOUT
        while len(self._lines) < self._seen + number:
            if time.monotonic() > end or not self._reader.is_alive():
                raise TimeoutError(f"too few lines: {self._lines[self._seen :]}")
            time.sleep(0.02)
        printed = self._lines[self._seen : self._seen + number]
        self._seen += number
        return printed

    def interrupt(self) -> None:
        """Do what Ctrl-C does: interrupt the command, not the shell."""
        for child in psutil.Process(self._process.pid).children():
            child.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the shell and what runs in it."""
        running = psutil.Process(self._process.pid).children(recursive=True)
        self.interrupt()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.kill()
            self._process.wait()
        self._reader.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _without_end(lines: list[str]) -> list[str]:
    """Leave out empty lines at the end: one is always printed before the end is marked."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


@dataclass(frozen=True)
class Difference:
    """A command that did not print what the page says.

    Attributes:
        command: The command.
        status: Its exit status; None where it keeps running.
        printed: What it printed instead.
    """

    command: Command
    status: int | None
    printed: list[str]

    def __str__(self) -> str:
        said, printed = (
            "\n".join(f"    {line}" for line in lines) for lines in (self.command.output, self.printed)
        )
        return f"$ {self.command.text}  (status {self.status})\n  the page says\n{said}\n  it printed\n{printed}"


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a page's commands: the installed commands, no colours, no settings of ours."""
    ours = ("CMAKE_ARGS", "COE_", "PYTEST")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "REPOSITORY": str(Path(__file__).parents[2]),
        "TERM": "dumb",
        "COLUMNS": "110",
        "LC_ALL": "C.UTF-8",
    }


def run_page(path: Path, directory: Path, home: Path) -> list[Difference]:
    """Run a page in a directory, and return the commands whose output differs from what it says.

    Raises:
        AssertionError: A program or a preparation fails, or a command fails where the page shows no error, or the
            reverse.
    """
    terminals: dict[str, Terminal] = {}
    differences = []
    try:
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.skipped:
                continue
            if block.language == "python":
                run = subprocess.run(
                    [sys.executable, "-W", "error", "-c", block.text],
                    cwd=directory,
                    env=environment(home),
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT,
                    check=False,
                )
                assert run.returncode == 0, f"{path}:{block.line + 1}: {run.stderr}"
                continue
            terminal = terminals.get(block.terminal)
            if terminal is None:
                terminal = terminals[block.terminal] = Terminal(directory, environment(home))
            if block.language == "run":
                terminal.start(block.text)
                status, printed = terminal.wait()
                assert status == 0, f"{path}:{block.line + 1}: {printed}"
            elif block.terminal:
                differences += _run_in_terminal(terminal, block)
            else:
                differences += _run_in_page(terminal, block)
    finally:
        for terminal in terminals.values():
            terminal.close()
    return differences


def _run_in_page(terminal: Terminal, block: Block) -> Iterator[Difference]:
    for command in block.commands():
        terminal.start(command.text)
        status, printed = terminal.wait()
        fails = any(line.startswith(("coe-native: ", "Error: ")) for line in command.output)
        assert (status != 0) == fails, str(Difference(command, status, printed))
        if not same_output(_without_end(command.output), printed):
            yield Difference(command, status, printed)


def _run_in_terminal(terminal: Terminal, block: Block) -> Iterator[Difference]:
    for command in block.commands():
        if command.text:
            terminal.start(command.text)
            printed = terminal.wait_for_lines(len(command.output))
            if not same_output(command.output, printed):
                yield Difference(command, None, printed)
        else:
            terminal.interrupt()
            status, printed = terminal.wait()
            printed = ["^C" + "".join(printed[:1]), *printed[1:]]  # as a terminal shows it
            if not same_output(_without_end(command.output), printed):
                yield Difference(command, status, printed)


def update(path: Path, differences: list[Difference]) -> None:
    """Write what commands printed into their page."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for difference in sorted(differences, key=lambda difference: -difference.command.line):
        first = difference.command.line
        lines[first : first + len(difference.command.output)] = [line.rstrip() for line in difference.printed]
    path.write_text("\n".join(lines), encoding="utf-8")
