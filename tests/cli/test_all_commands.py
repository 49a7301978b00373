"""What concerns several commands or all of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.command_line import (
    COMMAND,
    ENVIRONMENT,
    RUN,
    TWO_THREADS,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_line,
    refuse,
    report,
    run,
)

import coe_native as coe
from coe_native.cli import COMMANDS
from coe_native.recipes import demo

WRITERS = (
    "profile parent.gguf -c tokens.npy --threads 1",
    "merge profile.gguf profile1.gguf",
    "mask profile.gguf --keep 4",
    "prune parent.gguf --mask mask.json",
    "zero parent.gguf --mask mask.json",
    "specialise parent.gguf -c tokens.npy --keep 4 --threads 1",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    done = ok(command, "--help")
    assert f"coe-native {command}" in done.out
    assert not done.err


def test_help_imports_nothing_large() -> None:
    """Imports are what takes time; a stopwatch would fail on a busy machine."""
    process = subprocess.run(
        [COMMAND, "--help"],
        env={**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"llama_cpp", "numpy", "gguf", "rich.console", "coe_native._core"}
    assert set(re.findall(r"^  ([\w-]+)  ", process.stdout, re.MULTILINE)) >= set(COMMANDS)
    assert coe.__version__ in ok("--version").out


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_no_llama_cpp(command: str | None, tmp_path: Path) -> None:
    arguments = ["--help"] if command is None else [command, "--help"]
    code = (
        "import sys; from click.testing import CliRunner; from coe_native.cli import group; "
        f"result = CliRunner().invoke(group, {arguments}); assert result.exit_code == 0, result; "
        "assert 'Options' in result.output; print('llama_cpp' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_fit_keeps_as_many_experts_as_memory_allows(texts: Path, tmp_path: Path) -> None:
    size = ("--fit", "28MiB", "--ctx", "8192")
    shown = report("inspect", demo.MODEL, *size)
    keep = shown["specialist"]["keep"]
    assert 4 < keep < 32
    assert sum(shown["specialist"]["memory"][part] for part in ("weights", "context", "compute")) <= 28 << 20
    made = report("mask", texts / "python.gguf", *size, "--model", demo.MODEL, "-o", tmp_path / "m.json")
    assert made["keep"] == keep
    cut = report("prune", demo.MODEL, "--profile", texts / "python.gguf", *size, "-o", tmp_path / "out.gguf")
    assert cut["keep"] == keep
    by_mask = report("prune", demo.MODEL, "--mask", tmp_path / "m.json", "-o", tmp_path / "same.gguf")
    assert by_mask["bytes"] == cut["bytes"]
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    made = report(
        *("specialise", demo.MODEL, "-c", texts / "python.profile.txt", "--fit", "28MiB", "--types", "none"),
        *("-o", tmp_path / "s.gguf", *TWO_THREADS),
    )
    assert made["keep"] == keep
    assert (tmp_path / "s.gguf").stat().st_size == pytest.approx(cut["bytes"], rel=1e-3)


BAD_OUTPUTS: list[tuple[str, str]] = [
    *((f"{writer} -o precious.gguf", r"precious\.gguf.*--force") for writer in WRITERS),
    *((f"{writer} -o folder --force", "folder.*directory") for writer in WRITERS[::3]),
    *((f"{writer} -o nowhere/out.gguf", "nowhere") for writer in WRITERS[2::3]),
]


@by_line("pattern", BAD_OUTPUTS)
def test_bad_outputs_are_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("", "COMMAND"),
    ("nonsense", "nonsense"),
    ("--nonsense", "--nonsense"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)


def test_debug_shows_a_traceback() -> None:
    process = subprocess.run(
        [COMMAND, "--debug", "score", "missing.gguf"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "Traceback" in process.stderr
    assert "missing.gguf" in process.stderr
    assert process.returncode == 2


@pytest.mark.parametrize("line", ["score profile.gguf --csv", "inspect parent.gguf --json"])
def test_a_closed_pipe_is_no_error(files: Path, line: str) -> None:
    """As ``| head`` does."""
    receiver, sender = os.pipe()
    os.close(receiver)
    try:
        process = subprocess.run(
            [COMMAND, *shlex.split(line)],
            cwd=files,
            env=ENVIRONMENT,
            stdout=sender,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(sender)
    assert (process.returncode, process.stderr) == (0, b"")


def _full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))


@pytest.mark.parametrize("writer", [*WRITERS[:1], *WRITERS[2:4], *WRITERS[5:]])
def test_a_full_disk_leaves_nothing(files: Path, writer: str) -> None:
    done = refuse(files, *shlex.split(writer), "-o", "out.gguf", preexec_fn=_full_disk)
    assert re.search(r"out\S*\.(gguf|json)", one_line(done))
    assert done.status == 1


def _wait_until_read(process: subprocess.Popen[str]) -> None:
    """Wait until `process` has read what was written to its standard input, and waits for more."""
    assert process.stdin is not None
    for _ in range(6000):
        assert process.poll() is None
        if not any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):  # bytes that are not read yet
            return
        time.sleep(0.01)
    raise TimeoutError


def test_an_interrupt_leaves_nothing(tmp_path: Path, files: Path) -> None:
    """The corpus is standard input, which does not end: when its beginning was read, the command is at work."""
    line = ["profile", files / "reader.gguf", "-c", "-", "-o", tmp_path / "out.gguf"]
    with subprocess.Popen(
        [COMMAND, *map(str, line)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have been started with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdin is not None
        try:
            process.stdin.write("some text")
            process.stdin.flush()
            _wait_until_read(process)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            if process.poll() is None:
                # The signal came in the instant between Python's last look for one and the read that blocks:
                # whoever sits at the keyboard presses again.
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert (process.returncode, err.strip()) == (1, "coe-native: interrupted")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_during_start_shows_no_traceback(tmp_path: Path) -> None:
    """While the command line itself is still being loaded, Ctrl-C ends it without a traceback."""
    (tmp_path / "click.py").write_text("import time; print('loading', flush=True); time.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "coe_native", "inspect", "x"],
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (-signal.SIGINT, "")


def test_an_output_that_is_no_file_is_left_alone(tmp_path: Path, files: Path) -> None:
    """A device, a pipe: renaming over ``/dev/null`` would break the machine for everyone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = run("prune", files / "parent.gguf", "--mask", files / "mask.json", "-o", pipe, "--force")
    assert pipe.is_fifo()
    assert "pipe" in one_line(done)
    assert done.status == 2


@pytest.mark.parametrize("name", ["a[b].npy", "[/b].npy"])
def test_a_name_may_look_like_markup(tmp_path: Path, files: Path, name: str) -> None:
    """Which the tables' library would swallow, or stumble over where it closes what was never opened."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(files / "tokens.npy", tmp_path / name)
    assert name in ok("eval", files / "parent.gguf", "--text", name, *RUN, cwd=tmp_path).out


def test_a_name_need_not_be_utf_8(tmp_path: Path, files: Path) -> None:
    model = tmp_path / os.fsdecode(b"mod\xe9l.gguf")
    shutil.copy(files / "parent.gguf", model)
    assert report("inspect", model)["bytes"] == model.stat().st_size
    assert report("profile", model, "-c", files / "tokens.npy", "-o", tmp_path / "out.gguf", *RUN)["tokens"] == 128


def test_an_error_is_one_line_whatever_the_name(tmp_path: Path) -> None:
    assert "file" in one_line(refuse(tmp_path, "score", "two lines of a\nfile"))
