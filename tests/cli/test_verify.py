"""`coe-native verify`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.command_line import (
    by_line,
    check_options_refused,
    run,
)

UNLIKE: list[tuple[str, str, set[str], str]] = [
    ("flipped-expert.gguf", "mask.json", {"bytes"}, "blk.1.ffn_up_exps.weight"),
    ("flipped-attention.gguf", "mask.json", {"bytes"}, "blk.1.attn_q.weight"),
    ("flipped-router.gguf", "mask.json", {"bytes"}, "blk.1.ffn_gate_inp.weight"),
    ("flipped-nan.gguf", "mask.json", {"bytes", "norms"}, "blk.1.ffn_up_exps.weight"),
    ("flipped-digest.gguf", "mask.json", {"metadata"}, "mask"),
    ("pruned.gguf", "rest.json", {"metadata", "bytes"}, "mask"),
    ("parent.gguf", "mask.json", {"metadata", "bytes", "norms"}, "mask"),
    ("cut-pruned.gguf", "mask.json", {"header"}, "truncated"),
]


@pytest.mark.parametrize(("written", "mask", "failed", "told"), UNLIKE, ids=[f"{w}-{m}" for w, m, _, _ in UNLIKE])
def test_verify_finds_every_difference(files: Path, written: str, mask: str, failed: set[str], told: str) -> None:
    """A check that does not hold is a result, on stdout, and the exit status."""
    done = run("verify", written, "--parent", "parent.gguf", "--mask", mask, "--json", cwd=files)
    assert done.status == 1
    assert not done.json["passed"]
    checks = [check for check in done.json["checks"] if not check["passed"] and check["name"] != "loads"]
    assert {check["name"] for check in checks} == failed
    assert told in checks[0]["detail"]


def test_verify_names_the_failed_check(files: Path) -> None:
    done = run("verify", "flipped-expert.gguf", "--parent", "parent.gguf", "--mask", "mask.json", cwd=files)
    assert (done.status, done.err) == (1, "")
    assert re.findall(r"^FAILED +(\w+)", done.out, re.MULTILINE) == ["bytes"]


BAD_OPTIONS: list[tuple[str, str]] = [
    ("verify pruned.gguf --mask mask.json", "--parent"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
