"""Builds the C++ tests, as a developer would."""

from __future__ import annotations

import subprocess
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).parents[2]


def build(directory: Path, sanitizers: str, *options: str) -> None:
    """With warnings as errors; `sanitizers` as in ``address,undefined``."""
    prefix = Path(llama_cpp.__file__).parent.parent
    configure = [
        "cmake",
        *("-S", str(ROOT), "-B", str(directory), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug"),
        *("-DCOE_BUILD_PYTHON=OFF", "-DCOE_WARNINGS_AS_ERRORS=ON", *options),
        *(f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCOE_SANITIZE={sanitizers}"),
    ]
    succeed(directory, *configure)
    succeed(directory, "cmake", "--build", str(directory))


def succeed(directory: Path, *command: str) -> str:
    """The output of a command that must end well."""
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]
    return run.stdout
