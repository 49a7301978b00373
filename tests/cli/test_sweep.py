"""`coe-native sweep`."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from support.command_line import (
    TWO_THREADS,
    by_line,
    check_options_refused,
    ok,
    report,
    run,
)

from coe_native.recipes import demo


@pytest.mark.slow
def test_a_sweep_finds_the_smallest_keep(texts: Path, tmp_path: Path) -> None:
    line = (
        *("sweep", demo.MODEL, "--profile", texts / "python.gguf", "--keep", "16,24", "--method", "utility"),
        *("--method", "frequency", "--text", f"own={texts / 'python.test.txt'}"),
        *("--text", f"other={texts / 'prose.test.txt'}", "--fit", "30MiB", *TWO_THREADS),
    )
    told = report(*line, "--max-loss", "1000%", "-o", tmp_path / "s.json", "--plot", tmp_path / "s.html")
    assert told["smallest"] == {"utility": 16, "frequency": 16}
    assert [point["keep"] for point in told["points"]] == [16, 24, 16, 24]
    assert told["memory"]["16"] < 30 << 20 < told["memory"]["24"] < told["memory"]["32"]
    saved = json.loads((tmp_path / "s.json").read_text())
    assert {key: told[key] for key in saved} == saved
    assert "utility" in (tmp_path / "s.html").read_text()
    rows = list(csv.DictReader(io.StringIO(ok(*line, "--csv").out)))
    assert len(rows) == 2 * 5
    assert {row["text"] for row in rows} == {"own", "other"}
    shown = ok(*line, "--max-loss", "0.01%")
    assert re.search(r"0\.0%.*\bown\b", shown.err)
    assert all(len(line) < 100 for line in shown.out.splitlines()), "a terminal is not wider"
    assert re.search(r"30\.0 MiB.*8192.*\b16\b", shown.err)
    assert "5.0 MiB" in ok(*line[:-4], "--fit", "5MiB", *TWO_THREADS).err
    again = run(*line, "-o", tmp_path / "s.json")
    assert again.status == 2
    assert "exists" in again.err
    # One text is judged as eval judges it.
    mask = tmp_path / "m.json"
    ok("mask", texts / "python.gguf", "--keep", 16, "--method", "utility", "-o", mask)
    judged = report(
        *("eval", demo.MODEL, "--mask", mask, "--reference", demo.MODEL, *TWO_THREADS),
        *("--text", texts / "python.test.txt"),
    )["texts"][0]
    point = told["points"][0]["evaluations"][0]
    for name in ("perplexity", "kl_divergence", "top1_agreement"):
        assert judged[name] == pytest.approx(point[name], rel=1e-3)


BAD_LINES: list[tuple[str, str]] = [
    ("sweep DEMO --profile python.gguf --text a=python.test.txt --text a=prose.test.txt", "name"),
    ("sweep DEMO --profile python.gguf --text =python.test.txt", r"=python\.test\.txt"),
    ("sweep DEMO --profile python.gguf --text python.test.txt --keep 4,x", "4,x"),
    ("sweep DEMO --profile python.gguf --text python.test.txt --keep 2", r"keep.*\b4\b"),
    ("sweep DEMO --profile python.gguf --text python.test.txt --max-loss much", "much"),
    ("sweep DEMO --profile python.gguf --text python.test.txt --max-loss 10", "10%"),
    ("sweep DEMO --profile python.gguf --text python.test.txt --csv --json", "--csv.*--json|--json.*--csv"),
    ("sweep DEMO --profile python.gguf --text python.test.txt -o x.html --plot x.html", r"--output|-o|x\.html"),
    ("sweep DEMO --profile other.gguf --text python.test.txt --keep 4", r"other\.gguf.*model"),
    ("sweep DEMO --profile python.gguf --text python.test.txt -o python.gguf --force", r"python\.gguf.*input"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
