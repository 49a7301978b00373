"""`coe-native modelfile`."""

from __future__ import annotations

from pathlib import Path

from support.command_line import (
    by_line,
    check_options_refused,
    ok,
    report,
)

from coe_native.recipes import demo


def test_a_modelfile_is_printed_and_written(tmp_path: Path) -> None:
    shown = ok("modelfile", demo.MODEL, "--domain", "python").out
    ok("modelfile", demo.MODEL, "--domain", "python", "-o", tmp_path / "Modelfile")
    assert (tmp_path / "Modelfile").read_text() == shown
    told = report("modelfile", demo.MODEL, "--system", "Be brief.")
    assert told["system"] == "Be brief."
    assert told["prefill"] is None


BAD_LINES: list[tuple[str, str]] = [
    ("modelfile DEMO --domain cooking", "cooking"),
    ("modelfile other.gguf", r"other\.gguf"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
