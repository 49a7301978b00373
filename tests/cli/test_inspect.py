"""`coe-native inspect`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf import GGUFReader
from support.command_line import (
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_family,
    report,
)


@one_family
def test_inspect_shows_experts_sizes_and_memory(made: Made) -> None:
    reports = {name: report("inspect", path, "--ctx", 1024) for name, path in made.files.items()}
    for name, path in made.files.items():
        shown = reports[name]
        assert shown["bytes"] == path.stat().st_size
        assert (shown["experts"], shown["top_k"], shown["moe_layers"]) == (16, 4, [0, 1, 2])
        tensors = GGUFReader(path).tensors
        expected = sum(t.n_bytes for t in tensors if re.search(r"_exps\.|ffn_gate_inp\.weight", t.name))
        assert shown["expert_bytes"] == sum(kind["bytes"] for kind in shown["expert_tensors"]) == expected
    assert len({shown["fingerprint"] for shown in reports.values()}) == 1, "of one model, however quantised"
    layers, heads, size, keys_and_values, f16 = 3, 2, 64, 2, 2
    assert shown["memory"]["context"] == 1024 * layers * heads * size * keys_and_values * f16
    assert shown["memory"]["weights"] == pytest.approx(shown["bytes"], rel=0.1)
    text = ok("inspect", made.files["F32"]).out
    assert shown["architecture"] in text
    assert re.search(r"experts.* 16\b", text)


CUTS = ("magic", "entries", "tensors", "end")
BAD_INPUT: list[tuple[str, str]] = [
    *((f"inspect cut-{name}.gguf", rf"cut-{name}\.gguf") for name in CUTS),
    ("inspect missing.gguf", r"missing\.gguf"),
    ("inspect empty.gguf", r"empty\.gguf"),
    ("inspect words.txt", r"words\.txt.*GGUF"),
    ("inspect folder", "folder.*directory"),
    ("inspect dense.gguf", r"dense\.gguf.*experts"),
    ("inspect profile.gguf", r"profile\.gguf.*experts"),
    ("inspect uneven.gguf", r"uneven\.gguf.*blk\.0"),
    ("inspect greedy.gguf", r"greedy\.gguf.*\b9\b"),
    ("inspect gating.gguf", r"gating\.gguf.*expert_gating_func"),
    ("inspect heads.gguf --ctx 64", r"heads\.gguf.*head_count"),
    ("inspect blocks.gguf", r"blocks\.gguf.*4294967295"),
    ("inspect blockless.gguf", r"blockless\.gguf.*\b0\b"),
    ("inspect parent-00002-of-00002.gguf", r"parent-00001-of-00002\.gguf"),
    ("inspect other-00001-of-00002.gguf", r"other-00002-of-00002\.gguf"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("inspect", "MODEL"),
    ("inspect parent.gguf --keep some", "--keep"),
    ("inspect parent.gguf --keep -1", r"keep.*\b2\b"),
    ("inspect parent.gguf --ctx -1", "--?ctx"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)


BAD_LINES: list[tuple[str, str]] = [
    ("inspect DEMO --fit 2M", r"\b1 MiB"),
    ("inspect DEMO --fit 20M --keep 8", "--fit.*--keep|--keep.*--fit"),
    ("inspect DEMO --ctx 2000000000", "4194304"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
