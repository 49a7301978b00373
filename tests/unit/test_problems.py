"""Files of HumanEval problems."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.problems import ADD, as_lines

import coe_native as coe
from coe_native.evaluation.problems import read_problems


def test_problems_are_read_plain_and_packed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_text(as_lines([ADD]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_problems(plain) == read_problems(packed) == [ADD]


def test_problems_are_read_from_other_containers(tmp_path: Path) -> None:
    one = json.loads(as_lines([ADD]))
    records = [one | {"task_id": number, "more": 5} for number in range(2)]
    expected = [replace(ADD, task_id=str(number)) for number in range(2)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r) + "\n" for r in records).encode())
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    for name in ("a.json", "b.jsonl", "c.parquet"):
        assert read_problems(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"p\.jsonl"),
        (as_lines([ADD, ADD]).encode(), "Test/0"),
        (b'{"task_id": 1}', r":1: "),
        (as_lines([ADD]).replace('"total"', '"total; import os"').encode(), ":1: .*function"),
        (b"\x1f\x8b\x08garbage", r"p\.jsonl"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], r"p\.jsonl"),
        (gzip.compress(b"x" * (70 << 20), mtime=0), r"p\.jsonl"),
        ((as_lines([replace(ADD, test="x" * (33 << 20))]) * 2).encode(), "64 MB"),
    ],
)
def test_bad_problems_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match=said):
        read_problems(path)
