"""`coe-native compare`."""

from __future__ import annotations

import json
from pathlib import Path

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
def test_a_mask_shares_all_with_itself_and_nothing_with_the_rest(made: Made, tmp_path: Path) -> None:
    document = json.loads(made.mask.read_text())
    document["layers"] = {b: sorted(set(range(16)) - set(kept)) for b, kept in document["layers"].items()}
    rest = tmp_path / "rest.json"
    rest.write_text(json.dumps(document))
    same, other = report("compare", made.mask, made.mask), report("compare", made.mask, rest)
    assert (same["shared"], same["mean_jaccard"], same["by_chance"]) == (3 * 8, 1, 3 * 8 * 8 / 16)
    assert (other["shared"], other["mean_jaccard"]) == (0, 0)
    assert [layer["layer"] for layer in same["layers"]] == [0, 1, 2]
    assert "1.00" in ok("compare", made.mask, made.mask).out
    profiles = report("compare", made.profile, made.profile, "--keep", 5)
    assert profiles["shared"] == 3 * 5


BAD_INPUT: list[tuple[str, str]] = [
    ("compare mask.json gemma-mask.json", r"gemma-mask\.json.*model.*\bmask\.json"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("compare mask.json", "SECOND"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
