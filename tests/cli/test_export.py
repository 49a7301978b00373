"""``export``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from support.command_line import by_line, check_input_refused, ok, report

import coe_native as coe


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("qwen3moe", "gemma4"):
        coe.ExpertMask(name, "0" * 64, 8, 4, {0: (0, 2, 5, 7), 1: (1, 2, 3, 4)}).save(tmp_path / f"{name}.json")
    return tmp_path


def test_the_command_line_of_the_engine_is_shown(directory: Path) -> None:
    done = ok("export", "qwen3moe.json", "-o", "it's.jsonl", cwd=directory)
    line = next(line for line in (done.out + done.err).splitlines() if line.startswith("vllm serve"))
    settings = json.loads(shlex.split(line)[-1])
    assert settings == {"expert_list_file": str(directory / "it's.jsonl"), "expert_prune_ratio": 0.5}
    assert (directory / "it's.jsonl").read_text() == '{"0": [0, 2, 5, 7]}\n{"1": [1, 2, 3, 4]}\n'
    again = report("export", "qwen3moe.json", "-o", "it's.jsonl", "--force", cwd=directory)
    assert (again["keep"], again["additional_config"]) == (4, settings)


@by_line(
    "pattern",
    [
        ("export qwen3moe.json -o qwen3moe.json --force", "is an input"),
        ("export gemma4.json -o out.jsonl", r"gemma4\.json: .*Qwen3-MoE models only"),
        ("export missing.json -o out.jsonl", "missing.json"),
        ("export qwen3moe.json -o gemma4.json", "exists"),
        ("export qwen3moe.json -o nowhere/out.jsonl", "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused(directory: Path, line: str, pattern: str) -> None:
    check_input_refused(directory, line, pattern)
