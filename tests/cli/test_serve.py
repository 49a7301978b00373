"""`coe-native serve`, as far as it does not start. tests/integration/test_serving.py has the rest."""

from __future__ import annotations

from pathlib import Path

from support.command_line import (
    by_line,
    check_options_refused,
)

BAD_OPTIONS: list[tuple[str, str]] = [
    ("serve parent.gguf -o out.gguf --method contribution", "contribution.*--stats contribution"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
