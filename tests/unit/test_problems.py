"""Files of HumanEval problems."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from support.problems import ADD, as_lines

import coe_native as coe
from coe_native.evaluation.problems import read_problems


def test_problems_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_text(as_lines([ADD]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == read_problems(packed) == [ADD]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"p\.jsonl"),
        (as_lines([ADD, ADD]).encode(), "Test/0"),
        (b'{"task_id": 1}', r":1: "),
        (as_lines([ADD]).replace('"total"', '"total; import os"').encode(), ":1: .*function"),
        (b"\x1f\x8b\x08garbage", r"p\.jsonl"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], r"p\.jsonl"),
        (gzip.compress(b"x" * (70 << 20), mtime=0), "64 MB"),
    ],
)
def test_bad_problems_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match=said):
        read_problems(path)
