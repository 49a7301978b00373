"""`coe-native zero`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from support.command_line import (
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    report,
)


def tensor_bytes(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


@pytest.mark.parametrize("made", ["gemma4"], indirect=True)
def test_zero_writes_the_same_in_a_copy_and_in_place(made: Made, tmp_path: Path) -> None:
    parent, copy, out = made.files["Q8_0"], tmp_path / "copy.gguf", tmp_path / "out.gguf"
    shutil.copy(parent, copy)
    ok("zero", parent, "--mask", made.mask, "-o", out)
    shown = report("zero", copy, "--mask", made.mask, "--in-place", "--yes")
    assert tensor_bytes(out) == tensor_bytes(copy) != tensor_bytes(parent)
    weights = [t for t in GGUFReader(parent).tensors if re.search(r"_exps\.(weight|bias)", t.name)]
    assert shown["zeroed_bytes"] == sum(tensor.n_bytes for tensor in weights) // 2
    for written in (copy, out):
        checked = ok("verify", written, "--parent", parent, "--mask", made.mask)
        assert re.findall(r"^(ok|FAILED)", checked.out, re.MULTILINE) == ["ok"] * 6
    assert sorted(tmp_path.iterdir()) == [copy, out]


BAD_INPUT: list[tuple[str, str]] = [
    ("zero parent.gguf --mask other-mask.json --in-place --yes", r"other-mask\.json.*model"),
    ("zero parent.gguf --mask mask2.json -o mask2.json --force", r"mask2\.json.*input"),
    ("zero parent.gguf --mask mask.json", "-o.*--in-place"),
    ("zero parent.gguf --mask mask.json --in-place -o out.gguf --yes", "-o.*--in-place"),
    ("zero parent.gguf --mask mask.json --in-place", r"parent\.gguf.*--yes"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


FAILURES = [
    ("zero nan.gguf --mask mask.json -o out.gguf", r"nan\.gguf.*blk\.1\.ffn_up_exps\.weight.*expert"),
]


@by_line("pattern", FAILURES)
def test_failures_have_status_1(files: Path, line: str, pattern: str) -> None:
    """The request makes sense, but cannot be carried out."""
    check_input_refused(files, line, pattern, status=1)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("zero parent.gguf --mask mask.json --in-place -o o.gguf", "-o.*--in-place"),
    ("zero parent.gguf -o out.gguf", "--mask"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
