"""Files of LiveCodeBench's problems, and how outputs are compared."""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.contest import (
    case_fields,
    contest_lines,
    contest_problem,
    contest_record,
    method_record,
    officially_same_output,
    officially_same_value,
    packed,
    packed_data,
)

import coe_native as coe
from coe_native.evaluation import contest
from coe_native.evaluation.contest import (
    ContestTest,
    Selection,
    contest_files,
    read_contest,
    same_output,
    same_value,
    unpacked,
)
from coe_native.evaluation.program_runner import _encoded

DAYS = {"a": "2023-05-01T00:00:00", "b": "2024-01-31T10:30:00", "c": "2024-02-01"}


class Command:
    """Unpickling it would make a directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def read(path: Path, **options: Any) -> list[contest.ContestProblem]:
    return list(read_contest([path], **options))


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(contest_lines(records))
    return path


def test_published_fields_are_read(tmp_path: Path) -> None:
    program, method = read(written(tmp_path / "test.jsonl", contest_record(), method_record()))
    assert (program.task_id, program.difficulty, program.date) == ("own-1", "easy", datetime.date(2024, 3, 2))
    assert program.tests == tuple(
        ContestTest(given, expected)
        for given, expected in (("1 2\n", "3\n"), ("-5 5\n", "0\n"), ("7 7\n", "14\n"))
    )
    assert (method.method, method.difficulty) == ("total", "hard")
    assert method.tests == (ContestTest("[1, 2]\n3", "6", "total"), ContestTest("[]\n0", "0", "total"))
    assert method.starter.rstrip() in method.task().messages[0].content
    assert "Print the sum" in program.task().messages[0].content
    assert method.task().category == "hard"


@pytest.mark.parametrize("private", ["JSON", "list", "packed", "packed JSON", "missing", "empty"])
def test_private_tests_are_read_in_each_form(tmp_path: Path, private: str) -> None:
    cases = case_fields([("1\n", "é\n")])
    text = json.dumps(cases, ensure_ascii=False)
    given = {
        "JSON": text,
        "list": cases,
        "packed": packed(text),
        "packed JSON": packed_data(text.encode()),
        "missing": None,
        "empty": "",
    }[private]
    (problem,) = read(written(tmp_path / "test.jsonl", contest_record(private_test_cases=given)))
    expected = [ContestTest("1\n", "é\n")] if private not in ("missing", "empty") else []
    assert list(problem.tests[1:]) == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", ["", "a", "é\n" * 200, "\U0001f600" * 70_000])
def test_a_pickled_text_of_any_protocol_is_read(protocol: int, text: str) -> None:
    assert unpacked(packed(text, protocol)) == text


@given(st.text(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_packed_texts_come_out_as_they_went_in(text: str, protocol: int) -> None:
    assert unpacked(packed("[" + text, protocol)) == "[" + text


def test_parquet_with_times_and_lists_reads_as_json_lines_do(tmp_path: Path) -> None:
    one, two = contest_record(), method_record()
    lines = read(written(tmp_path / "test.jsonl", one, two))
    date = datetime.datetime(2024, 3, 2, 12, 30)
    rows = [record | {"contest_date": date} for record in (one, two)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    assert read(tmp_path / "test.parquet") == lines
    rows = [row | {"public_test_cases": json.loads(row["public_test_cases"])} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists.parquet")
    assert read(tmp_path / "lists.parquet") == lines


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(contest_lines([contest_record()]).encode()))
    assert [problem.task_id for problem in read(tmp_path / "test.jsonl.gz")] == ["own-1"]


def test_tests_are_read_only_of_problems_that_are_taken(tmp_path: Path) -> None:
    """Private tests are large, so those that are not needed are not even looked at."""
    bad = contest_record("bad", private_test_cases="?")
    path = written(tmp_path / "test.jsonl", bad, contest_record("good"))
    (problem,) = read(path, selection=Selection(names={"good"}))
    assert len(problem.tests) == 3
    assert [(each.task_id, each.tests) for each in read(path, with_tests=False)] == [("bad", ()), ("good", ())]
    with pytest.raises(coe.InputError, match=":1: "):
        read(path)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (None, None, "abc"),
        ("2024-01-31", None, "bc"),
        (None, "2024-01-31", "ab"),
        ("2024-01-31", "2024-01-31", "b"),
        ("2024-02-02", None, ""),
        ("2024-02-01", "2023-01-01", ""),
    ],
)
def test_dates_select_contests_with_both_days_included(
    tmp_path: Path, first: str | None, last: str | None, expected: str
) -> None:
    records = [contest_record(name, contest_date=day) for name, day in DAYS.items()]
    day = datetime.date.fromisoformat
    selection = Selection(day(first) if first else None, day(last) if last else None)
    found = read(written(tmp_path / "test.jsonl", *records), selection=selection)
    assert "".join(problem.task_id for problem in found) == expected


def test_a_problem_without_date_is_refused_only_if_dates_matter(tmp_path: Path) -> None:
    path = written(tmp_path / "test.jsonl", contest_record(contest_date=None))
    assert read(path)[0].date is None
    with pytest.raises(coe.InputError, match=r":1: .*own-1.*contest_date"):
        read(path, selection=Selection(first=datetime.date(2024, 1, 1)))


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        (None, [1, 2, 3]),
        ("release_v1", [1]),
        ("release_v2", [1, 2]),
        ("release_v3", [1, 2, 3]),
        ("v2", [2]),
        ("v2_v3", [2, 3]),
    ],
)
def test_a_release_names_files_of_a_directory(tmp_path: Path, release: str | None, numbers: list[int]) -> None:
    names = ["test.jsonl", "test2.jsonl", "test3.jsonl"]
    for name in [*names, "README.jsonl", "other.txt"]:
        (tmp_path / name).touch()
    assert contest_files([tmp_path], release) == [tmp_path / names[number - 1] for number in numbers]
    given = [tmp_path / name for name in reversed(names)]
    if release is not None:
        assert contest_files(given, release) == contest_files([tmp_path], release)


@pytest.mark.parametrize("release", ["release_v4", "v0", "v3_v2", "v10", "latest", "release_v1_v2", ""])
def test_releases_that_are_not_there_are_refused(tmp_path: Path, release: str) -> None:
    for name in ("test.jsonl", "test2.jsonl", "test3.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(coe.InputError):
        contest_files([tmp_path], release)


def test_a_directory_without_problems_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(coe.InputError, match="jsonl"):
        contest_files([tmp_path])


def test_the_same_problem_in_two_files_is_refused(tmp_path: Path) -> None:
    paths = [written(tmp_path / name, contest_record()) for name in ("test.jsonl", "test2.jsonl")]
    with pytest.raises(coe.InputError, match=r"test2\.jsonl:1: .*own-1"):
        list(read_contest(paths))


TEXT = json.dumps(case_fields([("1\n", "1\n")]))
DEEP = "[" * 100_000
HOSTILE: dict[str, Any] = {
    "a command": packed_data(pickle.dumps(Command())),
    "a command of protocol 0": packed_data(b"cos\nsystem\n(S'touch unpickled'\ntR."),
    "a text, then a command": packed_data(pickle.dumps([TEXT, Command()])),
    "a command, thrown away": packed_data(b"cos\nsystem\n(S'touch unpickled'\ntR0" + pickle.dumps(TEXT)),
    "a command by STACK_GLOBAL": packed_data(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01a\x85R."),
    "an instance": packed_data(b"(S'touch unpickled'\nios\nsystem\n."),
    "two texts": packed_data(b"\x80\x04" + b"\x8c\x01a" * 2 + b"."),
    "no text": packed_data(b"\x80\x04."),
    "a number": packed(5),
    "a list": packed([TEXT]),
    "a text without end": packed_data(b"\x80\x04\x8c\x05a"),
    "a huge length": packed_data(b"\x80\x04\x8d" + b"\xff" * 8 + b"a."),
    "a length beyond the data": packed_data(b"\x80\x04X\xff\xff\xff\x7fa."),
    "a long number": packed_data(b"L" + b"9" * 100_000 + b"L\n."),
    "no pickle": packed_data(b"what is this"),
    "nothing": packed_data(b""),
    "bytes that are not UTF-8": packed_data(b"\x80\x03C\x02\xff\xff."),
    "JSON that is not UTF-8": packed_data(b'["\xff"]'),
    "base64 that is cut off": packed(TEXT)[:-3],
    "data that is cut off": base64.b64encode(zlib.compress(pickle.dumps(TEXT))[:-5]).decode(),
    "base64 of plain text": base64.b64encode(b"plain text").decode(),
    "no base64": "äöü",
    "JSON of deep lists": DEEP,
    "JSON of deep unknown fields": '[{"input": "", "output": "", "more": ' + DEEP,
    "packed JSON of deep lists": packed_data(DEEP.encode()),
    "a pickle of deep JSON": packed('[{"input": "", "output": "", "more": ' + DEEP),
    "a pickle of invalid JSON": packed("[{"),
    "half of a surrogate pair": packed_data(b"\x80\x04\x8c\x03\xed\xa0\x80."),
    "an object": '{"input": "", "output": ""}',
    "a test without output": '[{"input": ""}]',
    "a test of numbers": '[{"input": 1, "output": 2}]',
    "an unknown type": '[{"input": "1", "output": "2", "testtype": "socket"}]',
    "a function without name": '[{"input": "1", "output": "2", "testtype": "functional"}]',
    "a whole number": 5,
    "a list of texts": ["a"],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_private_tests_are_refused_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "t.jsonl", contest_record(), contest_record("2", private_test_cases=HOSTILE[name]))
    with pytest.raises(coe.InputError, match=r"t\.jsonl:2: ") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert list(tmp_path.iterdir()) == [path], "something was executed"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_pickle_gives_a_text_or_is_refused(data: bytes) -> None:
    for text in (packed_data(b"\x80\x04" + data + b"."), packed_data(data), data.decode("latin-1")):
        with contextlib.suppress(coe.InputError, UnicodeError):  # the reader turns both into one error
            assert isinstance(unpacked(text), str)


def test_data_that_expands_too_much_is_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "_MOST_TESTS", 1 << 20)
    bomb = base64.b64encode(zlib.compress(b"[" + b" " * (64 << 20))).decode()
    with pytest.raises(coe.InputError, match="1 MB"):
        unpacked(bomb)
    assert len(unpacked(packed("x" * (1 << 19)))) == 1 << 19


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question_id": None}, "question_id"),
        ({"question_id": ["a"]}, "question_id"),
        ({"question_content": 5}, "question_content"),
        ({"difficulty": 3}, "difficulty"),
        ({"contest_date": "yesterday"}, "contest_date"),
        ({"contest_date": "2024-02-30"}, "contest_date"),
        ({"metadata": "{"}, ""),
        ({"metadata": DEEP}, ""),
        ({"metadata": '{"func_name": 5}'}, "func_name"),
        ({"metadata": '{"func_name": "a; import os"}'}, "func_name"),
        ({"public_test_cases": "[{", "private_test_cases": None}, ""),
        ({"public_test_cases": None, "private_test_cases": None}, "no tests"),
        ({"public_test_cases": "[]", "private_test_cases": ""}, "no tests"),
        ({"metadata": {"func_name": "f"}, "public_test_cases": TEXT, "private_test_cases": None}, "JSON"),
    ],
)
def test_bad_fields_are_refused_with_their_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = written(tmp_path / "t.jsonl", contest_record("first"), contest_record(**changes))
    with pytest.raises(coe.InputError, match=rf"t\.jsonl:2: .*{said}") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["[]", "{", '"text"', "\udc80", DEEP, '{"question_id": ' + DEEP])
def test_lines_that_are_no_records_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes((contest_lines([contest_record()]) + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(coe.InputError, match=r"t\.jsonl:2: "):
        read(path)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("  1 2  \n\n", "1 2\n", True),
        ("\n\n1\n2\n", " 1 \n 2 ", True),
        ("1  2", "1 2", True),  # as decimals
        ("a  b", "a b", False),
        ("1\n\n2", "1\n2", False),
        ("1.0", "1", True),
        ("1e2", "100", True),
        ("0.1000", ".1", True),
        ("-0", "0", True),
        ("0.30000000000000004", "0.3", False),
        ("1 2 3", "1 2", False),
        ("YES", "Yes", False),
        ("1,2", "1, 2", False),
        ("", "", True),
        ("", "0", False),
        ("\n \n", "", True),
        ("inf", "Infinity", True),
        ("0x10", "16", False),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("1\u00a02", "1 2", True),
        ("1" * 5000, "1" * 5000 + ".0", True),
        ("1e999999999", "1e999999998", False),
        ("1e99999999999999999999", "1", False),
        ("sNaN 1", "1 sNaN", False),
    ],
)
def test_outputs_are_compared_as_the_official_grader_does(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) == same


NUMBERS = st.sampled_from(
    ["0", "-0", "1", "1.0", "1.", ".5", "0.50", "5e-1", "1e1", "10", "+10", "inf", "-Infinity"]
)
WORDS = st.one_of(NUMBERS, st.sampled_from(["a", "A", "b", "1a", "1,", "e1", "--1", "."]))
BLANKS = st.sampled_from([" ", "  ", "\t", " \n", "\n", "\n\n", "\r\n"])
OUTPUTS = st.lists(st.one_of(WORDS, BLANKS), max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(OUTPUTS, OUTPUTS)
def test_verdicts_on_outputs_are_those_of_an_independent_grader(printed: str, expected: str) -> None:
    assert same_output(printed, expected) == officially_same_output(printed, expected)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, BLANKS), min_size=1, max_size=4))
def test_verdicts_on_lines_of_numbers_are_those_of_an_independent_grader(
    parts: list[tuple[str, str, str]],
) -> None:
    """Outputs that differ in how numbers are written, which the other test finds too rarely."""
    printed, expected = ("".join(each[at] + each[2] for each in parts) for at in (0, 1))
    assert same_output(printed, expected) == officially_same_output(printed, expected)


KEYS = st.one_of(st.text(max_size=2), st.integers(0, 2), st.booleans())
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 1.0, 0.5]), st.sampled_from("ab")),
    *(st.text(max_size=2), st.just(10**30), st.sampled_from(["\ud800", "\U0001f600"])),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=2),
    ),
    max_leaves=6,
)


def through_the_runner(value: object) -> str:
    return json.dumps(_encoded(value)).encode().decode()


@settings(max_examples=400, deadline=None)
@given(VALUES, VALUES, st.booleans())
def test_verdicts_on_values_are_those_of_an_independent_grader(value: Any, other: Any, alike: bool) -> None:
    """`alike`: the expected value is what JSON makes of the returned one."""
    try:
        expected = json.dumps(value if alike else other)
    except TypeError:
        return
    assert same_value(through_the_runner(value), expected) == officially_same_value(value, expected)


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ([1, 2], "[1, 2]", True),
        ((1, 2), "[1, 2]", True),
        ([(1, 2)], "[[1, 2]]", False),
        (1, "1.0", True),
        (True, "1", True),
        (None, "null", True),
        ("1", "1", False),
        ({1: 2}, '{"1": 2}', False),
        ({"a": [1]}, '{"a": [1]}', True),
        (float("nan"), "NaN", False),
        ([], "{}", False),
    ],
)
def test_values_are_compared_as_python_does(value: Any, expected: str, same: bool) -> None:
    assert same_value(through_the_runner(value), expected) == same


@pytest.mark.parametrize(
    "returned",
    [
        "",
        "{",
        "{}",
        "[" * 10_000,
        '{"other": 1}',
        '{"dict": 5}',
        '{"dict": [[1]]}',
        '{"dict": [[{"dict": []}, 1]]}',
    ],
)
def test_values_that_the_runner_cannot_have_written_are_wrong(returned: str) -> None:
    assert not same_value(returned, "{}")


@given(VALUES)
def test_right_values_are_never_cut_off(value: Any) -> None:
    try:
        expected = json.dumps([value] * 2000, ensure_ascii=False)
    except TypeError:
        return
    if officially_same_value([value] * 2000, expected):
        test = ContestTest("", expected, "f")
        assert not test.why_wrong({"error": None, "output": through_the_runner([value] * 2000)})


FENCE = "```python\nprint(1)\n```\n"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)\n", "print(1)\n"),
        (FENCE, "print(1)\n"),
        (f"First this:\n{FENCE}Better:\n```\nprint(2)\n```\nDone.", "print(2)\n"),
        (f"<think>{FENCE}</think>```\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)", "print(1)\n"),
        ("- so:\n   ```\n   if 1:\n       print(1)\n   ```", "if 1:\n    print(1)\n"),
    ],
)
def test_the_last_block_of_an_answer_is_the_program(answer: str, program: str) -> None:
    assert contest_problem([("", "")]).program(answer) == program


def test_the_last_block_that_defines_the_method_is_the_program(tmp_path: Path) -> None:
    (problem,) = read(written(tmp_path / "test.jsonl", method_record()))
    defines = "class Solution:\n    def total(self, numbers, start):\n        return 0\n"
    answer = (
        f"```\ndef total_of(x): pass\n```\n```\n{defines}```\nFor example:\n```\nSolution().total([], 0)\n```\n"
    )
    assert problem.program(answer) == defines
    assert problem.program("```\nreturn 5\n```") == problem.starter + "return 5\n"


def test_one_problem_of_many_megabytes_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """The largest published problems have private tests of some 60 MB."""
    import tracemalloc

    size = 20 << 20
    path = written(
        tmp_path / "test.jsonl",
        contest_record(private_test_cases=json.dumps(case_fields([("x" * size, "1")]))),
    )
    tracemalloc.start()
    try:
        (problem,) = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(problem.tests[1].input) == size
    assert peak < 8 * size
