"""What a reader sees first: the README's first command in a fresh clone, and what the demo leaves behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.documentation import environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class FirstRun:
    """The demo's directory in the clone, what was printed, and the report beside each specialist."""

    directory: Path
    printed: list[str]
    reports: dict[str, dict[str, Any]]


def run_first_command(directory: Path) -> FirstRun:
    """Clone the repository into a directory, and run the README's first command there."""
    clone = directory / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    text = (clone / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python3 -m venv .*coe-native demo$", text, re.MULTILINE)
    variables = environment(directory) | {"HOME": os.environ["HOME"]}  # pip's cache
    run = subprocess.run(
        command, shell=True, cwd=clone, env=variables, capture_output=True, text=True, check=False, timeout=1700
    )
    assert run.returncode == 0, run.stderr
    made = clone / "coe-demo"
    reports = {
        path.name.removesuffix("-specialist.report.json"): json.loads(path.read_text(encoding="utf-8"))
        for path in made.glob("*.report.json")
    }
    return FirstRun(made, [line.rstrip() for line in run.stdout.splitlines()], reports)
