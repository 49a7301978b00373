"""Files of prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import coe_native as coe
from coe_native.corpus.documents import Message
from coe_native.evaluation.prompts import read_prompts
from coe_native.evaluation.tasks import Task
from coe_native.recipes import demo


def from_records(path: Path, *records: dict[str, Any]) -> list[Task]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_prompts(path)


def test_each_line_of_a_text_is_a_prompt_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufefffirst\r\n\n  second \u2028 line\x0c\r\nthird".encode())
    tasks = read_prompts(path)
    assert [(task.task_id, task.beginning) for task in tasks] == [
        ("1", "first"),
        ("3", "second \u2028 line"),
        ("4", "third"),
    ]
    assert all(task.messages == (Message("user", task.beginning),) and not task.category for task in tasks)
    packed = tmp_path / "prompts.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_prompts(packed) == tasks


@pytest.mark.parametrize("column", ["prompt", "question", "question_content", "instruction", "query", "text"])
def test_a_column_of_text_is_the_prompt(tmp_path: Path, column: str) -> None:
    (task,) = from_records(tmp_path / "p.jsonl", {column: "Why?\n", "other": "?"})
    assert (task.task_id, task.beginning) == ("1", "Why?\n")
    assert task.messages == (Message("user", "Why?\n"),)


@pytest.mark.parametrize(
    ("record", "roles", "last"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, ["user"], "a"),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
            ["system", "user"],
            "a",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                ]
            },
            ["user", "assistant", "user"],
            "c",
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["user"], "a"),
        ({"messages": json.dumps([{"role": "user", "content": "a"}])}, ["user"], "a"),
        ({"turns": ["first", "second"]}, ["user"], "first"),
        ({"messages": [{"role": "assistant", "content": "b"}], "prompt": "a"}, ["user"], "a"),
    ],
)
def test_conversations_are_asked_up_to_their_last_question(
    tmp_path: Path, record: dict[str, Any], roles: list[str], last: str
) -> None:
    (task,) = from_records(tmp_path / "p.jsonl", record)
    assert [message.role for message in task.messages] == roles
    assert task.messages[-1].content == task.beginning == last


def test_names_and_categories_are_kept(tmp_path: Path) -> None:
    tasks = from_records(
        tmp_path / "p.jsonl",
        {"prompt": "a", "task_id": "x/1", "category": "math"},
        {"prompt": "b", "id": 0, "difficulty": "hard"},
        {"prompt": "c", "question_id": 81, "category": ""},
        {"prompt": "d"},
    )
    assert [(task.task_id, task.category) for task in tasks] == [
        ("x/1", "math"),
        ("0", "hard"),
        ("81", ""),
        ("4", ""),
    ]


def test_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('id,question,category\n7,"a, b\nc",math\n8,d,\n')
    tasks = read_prompts(tmp_path / "p.csv")
    assert [(task.task_id, task.beginning, task.category) for task in tasks] == [
        ("7", "a, b\nc", "math"),
        ("8", "d", ""),
    ]
    rows = [{"id": "7", "turns": ["a, b\nc", "more"], "category": "math"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == tasks[:1]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    assert read_prompts(tmp_path / "p.json") == tasks[:1]


def test_the_demos_prompts_can_be_read() -> None:
    tasks = read_prompts(Path(str(demo.MODEL)).with_name("prompts.txt"))
    assert len(tasks) == 40


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "", r"p\.txt"),
        ("p.txt", " \n\n", r"p\.txt"),
        ("p.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', "1"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', ":2: "),
        ("p.jsonl", '{"prompt": "a"}\n{"answer": "b"}\n', ":2: "),
        ("p.jsonl", '{"prompt": 5}\n', ":1: "),
        ("p.jsonl", '{"turns": [5]}\n', ":1: "),
        ("p.jsonl", '{"messages": [5]}\n', ":1: "),
        ("p.jsonl", '{"messages": [{"role": "assistant", "content": "a"}]}\n', ":1: "),
        ("p.jsonl", '{"messages": [{"content": "a"}]}\n', ":1: "),
        ("p.jsonl", "{\n", ":1: "),
        ("p.jsonl", "[" * 100_000, ":1: "),
        ("p.csv", "answer\na\n", r"p\.csv"),
        ("p.py", "print()\n", r"p\.py"),
    ],
)
def test_bad_prompts_are_refused_with_their_place(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(coe.InputError, match=said) as error:
        read_prompts(path)
    assert "\n" not in str(error.value)


def test_a_text_of_another_encoding_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"na\xefve\n")
    for name in ("p.txt", "missing.txt", "missing.jsonl"):
        with pytest.raises(coe.InputError, match=name):
            read_prompts(tmp_path / name)
