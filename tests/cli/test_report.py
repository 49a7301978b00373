"""`coe-native report`."""

from __future__ import annotations

from pathlib import Path

from support.command_line import (
    by_line,
    check_options_refused,
    report,
)


def test_report_writes_a_page(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    told = report("report", texts / "python.gguf", texts / "prose.gguf", "-o", out, "--keep", "8")
    assert told["bytes"] == out.stat().st_size
    page = out.read_text()
    for text in ("python", "prose", "keep 8"):
        assert text in page


BAD_LINES: list[tuple[str, str]] = [
    ("report python.gguf --mask mask.json --keep 4 -o out.html", "--mask.*--keep|--keep.*--mask"),
    ("report python.gguf -o python.gguf --force", r"python\.gguf.*input"),
    ("report python.gguf other.gguf -o out.html", r"other\.gguf.*model|other.*model"),
    ("report python.gguf --sweep mask.json -o out.html", r"mask\.json.*sweep"),
]
"""On the demo's model."""


@by_line("pattern", BAD_LINES)
def test_bad_lines_are_refused(texts: Path, line: str, pattern: str) -> None:
    check_options_refused(texts, line, pattern)
