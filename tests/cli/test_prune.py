"""`coe-native prune`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bad_files import BAD_MASKS
from support.command_line import (
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    report,
)


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_mask_serves_every_quantisation(made: Made, tmp_path: Path, quantization: str) -> None:
    """The mask comes from the Q4_K_M file's profile."""
    parent, out = made.files[quantization], tmp_path / "out.gguf"
    shown = report("prune", parent, "--mask", made.mask, "-o", out)
    size = out.stat().st_size
    assert (shown["bytes"], shown["keep"]) == (size, 8)
    assert "safety" in shown["notice"]
    predicted = report("inspect", parent, "--keep", 8)["specialist"]["bytes"]
    assert abs(predicted - size) <= 0.01 * size
    written = report("inspect", out)
    assert (written["experts"], written["top_k"]) == (8, 4)
    assert written["mask"]["digest"] == made.mask_report["digest"]
    checked = report("verify", out, "--parent", parent, "--mask", made.mask)
    assert checked["passed"]
    kinds = {"metadata", "layout", "bytes", "norms", "loads", "graph"}
    assert {check["name"] for check in checked["checks"]} == kinds
    assert list(tmp_path.iterdir()) == [out]


BAD_INPUT: list[tuple[str, str]] = [
    *(
        (f"prune parent.gguf --mask {name}.json -o out.gguf", rf"{name}\.json.*{pattern}")
        for name, (_, pattern) in BAD_MASKS.items()
    ),
    ("prune parent.gguf --mask missing.json -o out.gguf", r"missing\.json"),
    ("prune parent.gguf --mask cut.json -o out.gguf", r"cut\.json"),
    ("prune parent.gguf --mask profile.gguf -o out.gguf", r"profile\.gguf.*mask"),
    ("prune parent.gguf --mask gemma-mask.json -o out.gguf", r"gemma-mask\.json.*gemma4"),
    ("prune parent.gguf --mask other-mask.json -o out.gguf", r"other-mask\.json.*model"),
    ("prune pruned.gguf --mask mask.json -o out.gguf", r"mask\.json.*model"),
    ("prune parent.gguf --mask mask.json -o link.gguf --force", r"link\.gguf.*input"),
    ("prune parent.gguf --mask mask1.json -o mask1.json --force", r"mask1\.json.*input"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


FAILURES = [
    ("prune nan.gguf --mask mask.json -o out.gguf", r"nan\.gguf.*blk\.1\.ffn_up_exps\.weight.*expert"),
]


@by_line("pattern", FAILURES)
def test_failures_have_status_1(files: Path, line: str, pattern: str) -> None:
    """The request makes sense, but cannot be carried out."""
    check_input_refused(files, line, pattern, status=1)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("prune parent.gguf --mask mask.json --split-max-size 4 -o o.gguf", "1M"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)


BAD_LINES: list[tuple[str, str]] = [
    ("prune DEMO -o out.gguf", "--mask.*--profile"),
    ("prune DEMO --profile python.gguf --mask mask.json -o out.gguf", "--mask.*--profile"),
    ("prune DEMO --mask mask.json --keep 4 -o out.gguf", "--keep.*--profile"),
    *(
        (f"prune DEMO --mask mask.json {option} -o out.gguf", "--method.*--profile")
        for option in (
            *("--method reap", "--published", "--structural", "--no-structural", "--structural-rank 3"),
            *("--structural-min 5", "--reasoning python.gguf", "--reasoning-swaps 2", "--fit 20MiB"),
        )
    ),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
