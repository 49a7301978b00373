"""Untrusted files: fuzz targets replayed without a fuzzer, and changed files through the command line.

What the fuzzers have found is in the tests of what was mended. `tests/fuzz/targets.py` and
`tests/cpp/fuzz/` say how to run them for longer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cpp_build import build
from fuzz.command_line import LINES
from fuzz.targets import SEEDS, TARGETS

from coe_native.cores import available_cores

SECONDS = os.environ.get("COE_FUZZ_SECONDS", "60")
"""For each target; as many run at once as there are cores."""

N_FILES = 400
"""Changed files of each kind."""

CPP_TARGETS = {"c_api": "c_api", "gguf_header": "gguf", "tensor_blocks": "tensor_blocks"}
"""The C++ core's targets, and the directories of their seeds."""


@pytest.mark.timeout(1800)
def test_replay(tmp_path: Path) -> None:
    build(tmp_path, "address,undefined", "-DCOE_BUILD_FUZZERS=ON")
    lines = [
        [str(tmp_path / f"coe_fuzz_{target}"), SECONDS, *map(str, sorted((SEEDS / seeds).iterdir()))]
        for target, seeds in CPP_TARGETS.items()
    ]
    lines += [[sys.executable, "-W", "error", "-m", "fuzz.replay", target, SECONDS] for target in TARGETS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

    def replay(line: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(available_cores()) as threads:
        for run in threads.map(replay, lines):
            assert run.returncode == 0, (run.args, run.stderr[-8000:])
            (n_inputs,) = re.fullmatch(r"(\d+) inputs\n", run.stdout).groups()  # type: ignore[union-attr]
            assert int(n_inputs) > 20 * float(SECONDS)


@pytest.mark.parametrize("kind", LINES)
def test_changed_files_on_the_command_line(tmp_path: Path, kind: str) -> None:
    """In a process of its own, for it forks."""
    line = [sys.executable, "-m", "fuzz.command_line", kind, str(N_FILES), "7"]
    run = subprocess.run(
        line,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    first, _, *complaints = run.stdout.splitlines()
    assert not complaints, complaints
    # Both sides of what is tested: files that are refused, and files that are still good.
    assert re.search(r"\{.*\b0: [1-9]", first), first
    assert re.search(r"\b2: [1-9]", first), first


def test_the_harness_sees_what_is_wrong(tmp_path: Path) -> None:
    """A command that shows a traceback, and one that leaves half a file."""
    code = (
        "from pathlib import Path; import sys; from coe_native import masking; from fuzz import command_line;"
        "masking.ExpertMask.load = classmethod(lambda cls, path: Path('out.gguf').write_bytes(b'half') and 1 / 0);"
        "command_line.LINES['mask'] = ('prune parent.gguf --mask FILE -o out.gguf',);"
        "print(*command_line._main('mask', 3, 0), sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.count("internal error (ZeroDivisionError") == 3
    assert len(list((tmp_path / "found").iterdir())) == 3
