"""LiveCodeBench's files, and how outputs are compared."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.contest import official_same_output, pack, pack_bytes, record

import coe_native as coe
from coe_native.evaluation.contest import (
    ContestTest,
    Selection,
    contest_files,
    read_contest,
    same_output,
    same_value,
    unpacked,
)

CASES = [("1 2\n", "3\n"), ("4 5\n", "9\n"), ("0 0\n", "0\n")]


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def test_problems_are_read_with_all_their_tests(tmp_path: Path) -> None:
    records = [
        record("a", CASES),
        record("b", CASES, packed=False, difficulty="Hard", starter_code=None),
        record("c", [("1\n2", "3"), ("[1]\n[]", "[1]")], function="add", starter="class Solution:\n"),
    ]
    a, b, c = read_contest([write(tmp_path / "test.jsonl", *records)])
    assert a.tests == b.tests == tuple(ContestTest(*case) for case in CASES)
    assert (a.difficulty, b.difficulty, a.date) == ("easy", "hard", datetime.date(2024, 5, 6))
    assert [test.method for test in c.tests] == ["add", "add"]
    assert c.starter == "class Solution:\n"
    assert "Title of a" in a.question
    assert "Text of a" in a.task().messages[0].content
    assert a.task().category == "easy"
    bare = list(read_contest([tmp_path / "test.jsonl"], with_tests=False))
    assert [problem.task() for problem in bare] == [problem.task() for problem in (a, b, c)]


def test_parquet_files_hold_the_same_problems(tmp_path: Path) -> None:
    records = [record("a", CASES), record("b", CASES, packed=False)]
    plain = list(read_contest([write(tmp_path / "test.jsonl", *records)]))
    for each in records:
        each["contest_date"] = datetime.datetime(2024, 5, 6, 12, 30)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test.parquet")
    assert list(read_contest([tmp_path / "test.parquet"])) == plain


def test_releases_and_dates_choose_problems(tmp_path: Path) -> None:
    for number in range(1, 5):
        name = "test.jsonl" if number == 1 else f"test{number}.jsonl"
        write(tmp_path / name, record(f"p{number}", CASES, contest_date=f"2024-0{number}-15T12:00:00"))
    (tmp_path / "readme.jsonl").write_text("{}\n")

    def ids(release: str | None = None, first: str | None = None, last: str | None = None) -> str:
        days = [datetime.date.fromisoformat(day) if day else None for day in (first, last)]
        found = read_contest(contest_files([tmp_path], release), Selection(*days), with_tests=False)
        return " ".join(problem.task_id for problem in found)

    assert ids() == "p1 p2 p3 p4"
    assert ids("release_v2") == "p1 p2"
    assert ids("v3") == "p3"
    assert ids("v2_v4") == "p2 p3 p4"
    assert ids(first="2024-02-15", last="2024-03-15") == "p2 p3"
    assert ids(last="2024-02-14") == "p1"
    for bad, said in (("release_v5", "test5"), ("latest", "release"), ("v4_v2", "ascends")):
        with pytest.raises(coe.InputError, match=said):
            contest_files([tmp_path], bad)
    with pytest.raises(coe.InputError, match="date"):
        list(
            read_contest(
                [write(tmp_path / "x.jsonl", record("a", CASES, contest_date=None))],
                Selection(datetime.date(2024, 1, 1)),
            )
        )


class _Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/coe-native-was-here",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"private_test_cases": pack(_Hostile())}, "pickle"),
        ({"private_test_cases": pack(["[]", "[]"])}, "pickle"),
        ({"private_test_cases": pack(5)}, "pickle"),
        ({"private_test_cases": pack_bytes(pickle.dumps("[]")[:-3])}, "pickle"),
        ({"private_test_cases": pack_bytes(b"\x80\x04\x8d" + b"\xff" * 8)}, "pickle"),
        ({"private_test_cases": pack("[]")[:-8]}, "cut off|neither|base64"),
        ({"private_test_cases": "not base64!"}, "neither"),
        ({"private_test_cases": pack("[" * 100_000)}, "p.jsonl:1: "),
        ({"private_test_cases": pack('[{"input": 1, "output": "2"}]')}, "p.jsonl:1: "),
        ({"private_test_cases": pack("5")}, "p.jsonl:1: "),
        ({"public_test_cases": "[", "private_test_cases": ""}, "p.jsonl:1: "),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "no tests"),
        ({"metadata": '{"func_name": "os.system"}'}, "function name"),
        ({"metadata": "{"}, "p.jsonl:1: "),
        ({"metadata": '{"func_name": "f"}'}, "JSON"),
        ({"contest_date": "yesterday"}, "date"),
        ({"question_content": 5}, "p.jsonl:1: "),
        ({"question_id": None}, "question_id"),
        ({"public_test_cases": '[{"input": "", "output": "", "testtype": "functional"}]'}, "func_name"),
        ({"public_test_cases": '[{"input": "", "output": "", "testtype": "magic"}]'}, "magic"),
    ],
)
def test_hostile_and_damaged_problems_are_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "p.jsonl", record("a", CASES) | change)
    with pytest.raises(coe.InputError, match=said) as caught:
        list(read_contest([path]))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert not Path("/tmp/coe-native-was-here").exists()


def test_a_bomb_of_compressed_tests_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe_native.evaluation.contest._MOST_TESTS", 1 << 20)
    with pytest.raises(coe.InputError, match="1 MB"):
        unpacked(pack("x" * (1 << 22)))


def test_a_problem_that_comes_twice_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, record("a", CASES)) for name in ("test.jsonl", "test2.jsonl")]
    with pytest.raises(coe.InputError, match=r"test2\.jsonl:1: .* a "):
        list(read_contest(files))


@given(st.text(), st.integers(0, 5))
def test_packed_texts_come_out_as_they_went_in(text: str, protocol: int) -> None:
    assert unpacked(pack("[" + text, protocol)) == "[" + text


@given(st.binary())
def test_no_bytes_do_anything_but_hold_a_text(data: bytes) -> None:
    for packed in (pack_bytes(data), pack_bytes(b"\x80\x04" + data + b"."), data.decode("latin-1")):
        try:
            assert isinstance(unpacked(packed), str)
        except coe.InputError:
            pass
        except UnicodeDecodeError:
            assert data[:1] in (b"[", b"{")  # reported with the line by the reader


PIECES = st.sampled_from(
    ["1", "1.0", "01", "1e0", "-0", "0", "nan", "x", " ", "\n", "\t", "2", "a b", "\r\n", "1_0"]
)


@given(st.lists(PIECES).map("".join), st.lists(PIECES).map("".join))
def test_outputs_are_compared_by_the_official_rule(printed: str, expected: str) -> None:
    assert same_output(printed, expected) == official_same_output(printed, expected)
    assert same_output(expected, expected)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
)


def encoded(value: Any) -> Any:
    """As the runner encodes values."""
    if isinstance(value, tuple):
        return {"tuple": [encoded(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key), encoded(each)] for key, each in value.items()]}
    return [encoded(each) for each in value] if isinstance(value, list) else value


@given(VALUES, VALUES)
def test_values_are_compared_as_python_compares_them(value: Any, other: Any) -> None:
    told = json.dumps(encoded(value))
    assert same_value(told, json.dumps(value))
    assert same_value(told, json.dumps(other)) == (value == json.loads(json.dumps(other)))
    if isinstance(value, list):
        assert same_value(json.dumps(encoded(tuple(value))), json.dumps(value))
        assert not same_value(json.dumps(encoded([tuple(value)])), json.dumps([value]))


@pytest.mark.parametrize("told", ["", "{", "[" * 10_000, '{"dict": [[[1], 2]]}', '{"other": 1}', '{"dict": 5}'])
def test_values_that_a_program_made_up_are_wrong(told: str) -> None:
    assert not same_value(told, "5")


def test_compressed_files_are_read(tmp_path: Path) -> None:
    line = json.dumps(record("a", CASES)).encode() + b"\n"
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(line))
    (problem,) = read_contest(contest_files([tmp_path]))
    assert len(problem.tests) == 3
