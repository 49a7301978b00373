"""`coe-native import`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.command_line import (
    by_line,
    check_options_refused,
    ok,
    report,
)
from support.imported_files import histograms, torch_save

from coe_native.recipes import demo


def test_files_of_other_tools_are_imported(tmp_path: Path) -> None:
    counts = torch_save(tmp_path / "counts.pt", histograms(6, 32))
    mask = torch_save(tmp_path / "mask.pt", [np.arange(16)] * 6)
    ok("import", counts, "--model", demo.MODEL, "-o", tmp_path / "p.gguf")
    ok("mask", tmp_path / "p.gguf", "--method", "rank-weighted", "--keep", 16, "-o", tmp_path / "m.json")
    told = report("import", mask, "--experts", 32, "-o", tmp_path / "m2.json")
    assert (told["keep"], told["experts"], told["model"]) == (16, 32, None)
    for made in ("m.json", "m2.json"):
        ok("prune", demo.MODEL, "--mask", tmp_path / made, "-o", tmp_path / f"{made}.gguf")
        ok("compare", tmp_path / "m.json", tmp_path / "m.json")


BAD_LINES: list[tuple[str, str]] = [
    ("import mask.json -o out.json", r"mask\.json.*llama-expert-profile"),
    ("import DEMO -o out.json", "imatrix"),
    ("import missing.pt -o out.json", r"missing\.pt"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
