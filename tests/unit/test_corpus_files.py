"""Containers, compression and encodings of corpus files, and which files of a directory are read."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe_native.corpus.read import read_corpus
from coe_native.corpus.readers import json_file
from coe_native.errors import InputError

RECORDS = [{"instruction": "Add é.", "output": 'x = "1",\n2'}, {"instruction": "Go on", "output": "done", "n": 7}]
CONTENTS = ['Add é.\nx = "1",\n2', "Go on\ndone"]


def contents(path: Path, **options: Any) -> list[object]:
    return [document.content for document in read_corpus(path, **options).documents]


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records: list[dict[str, Any]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[1]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_table(records: list[dict[str, Any]], write: Callable[[Any, Any], Any]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(records)
    with write(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


CONTAINERS: dict[str, bytes] = {
    "a.jsonl": as_lines(RECORDS),
    "a.ndjson": as_lines(RECORDS),
    "lines.json": as_lines(RECORDS),
    "list.json": json.dumps(RECORDS, indent=1).encode(),
    "compact.json": json.dumps(RECORDS, separators=(",", ":")).encode(),
    "data.json": json.dumps({"version": 1, "data": RECORDS}, indent=2).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(RECORDS).encode(),
    "crlf.jsonl": as_lines(RECORDS).replace(b"\n", b"\r\n"),
    "a.csv": as_csv(RECORDS, ","),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(RECORDS, ","),
    "a.tsv": as_csv(RECORDS, "\t"),
    "stream.arrow": as_table(RECORDS, pa.ipc.new_stream),
    "file.arrow": as_table(RECORDS, pa.ipc.new_file),
    "utf16.jsonl": as_lines(RECORDS).decode().encode("utf-16"),
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_hold_the_same_records(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(CONTAINERS[name])
    assert contents(tmp_path / name) == CONTENTS


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "a.csv", "utf16.jsonl"])
def test_compressed_files_are_read(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(COMPRESSORS[suffix](CONTAINERS[name]))
    assert contents(path) == CONTENTS


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_compression_is_told_by_content(suffix: str, tmp_path: Path) -> None:
    """A browser decompresses some downloads and keeps their names; other files are renamed."""
    (tmp_path / "named.jsonl").write_bytes(COMPRESSORS[suffix](as_lines(RECORDS)))
    (tmp_path / f"plain.jsonl{suffix}").write_bytes(as_lines(RECORDS))
    (tmp_path / "text.txt").write_text("BZh9 as text")
    assert contents(tmp_path / "named.jsonl") == contents(tmp_path / f"plain.jsonl{suffix}") == CONTENTS
    assert contents(tmp_path / "text.txt") == ["BZh9 as text"]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_text_is_one_document(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESSORS[suffix]("ä\n".encode() * 100_000))
    assert contents(path) == ["ä\n" * 100_000]


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_damaged_and_exploding_files_are_refused(suffix: str, tmp_path: Path) -> None:
    whole = COMPRESSORS[suffix](os.urandom(1000).hex().encode())
    for name, data in {
        "cut": whole[:-20],
        "noise": os.urandom(100),
        "bomb": COMPRESSORS[suffix](bytes(200 << 20)),
    }.items():
        path = tmp_path / f"{name}.txt{suffix}"
        path.write_bytes(data)
        with pytest.raises(InputError, match=name):
            read_corpus(path)


@given(
    st.lists(
        st.fixed_dictionaries({"text": st.text(min_size=1), "n": st.integers() | st.floats(allow_nan=False)}),
        min_size=1,
    )
)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lists_of_any_records_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(json_file, "_CHUNK", 7)  # so that records are cut everywhere
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    assert contents(path) == [record["text"] for record in records]


@pytest.mark.parametrize(
    "text", ["[", "[{}", '[{"text": "a"}', '[{"text": "a"} {"text": "b"}]', "[{}] x", "[1]", "{", "5", ""]
)
def test_bad_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_corpus(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("data", "encoding", "expected"),
    [
        ("modèle".encode("latin-1"), "latin-1", "modèle"),
        ("Привет, мир".encode("cp1251"), "cp1251", "Привет, мир"),
        ("日本語".encode("shift_jis"), "shift_jis", "日本語"),
        ("modèle".encode("utf-16-le"), "utf-16-le", "modèle"),
        ("modèle".encode("utf-16"), None, "modèle"),
        ("modèle".encode("utf-16-be").join([b"\xfe\xff", b""]), None, "modèle"),
        (b"\xef\xbb\xbfmod\xc3\xa8le", None, "modèle"),
    ],
)
def test_encodings_are_named_or_marked(data: bytes, encoding: str | None, expected: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert contents(tmp_path / "a.txt", encoding=encoding) == [expected]
    if encoding is not None:
        (tmp_path / "a.txt").write_bytes(data * 50)
        with pytest.raises(InputError, match="encoding"):
            read_corpus(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-7-and-a-half", "rot13", "base64"])
def test_other_encodings_are_refused(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="encoding"):
        read_corpus(tmp_path / "a.txt", encoding=encoding)


def make_tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_a_source_tree_is_its_own_code(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path,
        {
            ".gitignore": "*.log\nsecret/\n!keep.log\n",
            "a.py": "own",
            "package.json": '{"name": "thing", "version": "1"}',
            "run.log": "no",
            "keep.log": "kept",
            "secret/b.py": "no",
            "sub/.gitignore": "c.py\n",
            "sub/c.py": "no",
            "sub/d.py": "own too",
            "node_modules/x/index.js": "no",
            "venv/lib/six.py": "no",
            "build/out.txt": "no",
            "package-lock.json": '{"no": 1}',
            "app.min.js": "no",
            "logo.png": b"\x89PNG\r\n\x1a\n\0",
            "late.txt": b"plain text " * 2000 + "modèle".encode("latin-1"),
        },
    )
    read = read_corpus(tree)
    assert [d.content for d in read.documents] == ["own", "kept", '{"name": "thing", "version": "1"}', "own too"]
    skipped = dict(read.skipped)
    assert skipped.pop("not text") == 2
    assert skipped.pop("named in .gitignore") == 3
    assert skipped.pop("folder of dependencies or of a build") == 3
    assert skipped.pop("lock file or generated file") == 2
    assert skipped == {"hidden": 2}
    more = read_corpus(tree, include_ignored=True)
    assert len(more.documents) == 12
    assert contents(tree, exclude=["*.py", "keep*"]) == ['{"name": "thing", "version": "1"}']


def test_each_file_is_read_once_by_the_name_that_tells_its_format(tmp_path: Path) -> None:
    """As in the cache of Hugging Face's hub."""
    tree = make_tree(tmp_path, {"blobs/aaaa": as_lines(RECORDS), "blobs/bbbb": "plain"})
    (tree / "snapshots").mkdir()
    (tree / "snapshots" / "train.jsonl").symlink_to("../blobs/aaaa")
    (tree / "snapshots" / "also.jsonl").symlink_to("../blobs/aaaa")
    (tree / "loop").symlink_to(".")
    read = read_corpus(tree)
    assert [d.content for d in read.documents] == ["plain", *CONTENTS]
    assert dict(read.skipped) == {"another name of a file that is read": 2}


def test_descriptions_and_pointers_of_datasets_are_no_text(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 1\n"
    table = as_table(RECORDS, pa.ipc.new_stream)
    tree = make_tree(
        tmp_path,
        {
            "README.md": "---\n",
            "dataset_info.json": "{}",
            "state.json": "{}",
            "data.arrow": table,
            "b.parquet": pointer,
        },
    )
    read = read_corpus(tree)
    assert [d.content for d in read.documents] == CONTENTS
    assert dict(read.skipped) == {"description of a dataset": 3, "Git LFS pointer: run `git lfs pull`": 1}
    for name in ("b.parquet", "c.jsonl", "d.txt", "e.npy"):
        (tree / name).write_bytes(pointer)
        with pytest.raises(InputError, match="LFS pointer"):
            read_corpus(tree / name)


def test_columns_that_are_not_read_are_counted(tmp_path: Path) -> None:
    records = [{"question": "q" * 10, "answer": "a" * 10, "test": "t" * 20, "id": 5, "q2": "q" * 5}]
    (tmp_path / "a.jsonl").write_bytes(as_lines(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        read = read_corpus(tmp_path / name)
        assert read.columns_read == ("question", "answer")
        assert read.columns_ignored == (("test", 0.5),)
        assert contents(tmp_path / name, field=("test", "question")) == ["t" * 20 + "\n" + "q" * 10]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": None}, "null"),
        ({"text": 5}, "number"),
        ({"id": 1, "answer": 2.5}, "number"),
        ({"messages": None}, "null"),
        ({"messages": [5]}, "list of messages"),
        ({"role": "user", "content": "alone"}, "conversation"),
        ({"system": "alone"}, "has no text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "text": ""}]}]}, "text"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": 5}, "tools"),
        ({"messages": "not json"}, "JSON"),
        ({"messages": [{"content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "text"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": "x"}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [5]}]}, "tool_calls"),
        ({"messages": [{"role": "assistant", "content": "", "reasoning_content": 5}]}, "reasoning_content"),
        ({"question": "q", "options": 5}, "options"),
        ({"question": "q", "answer": {"deep": 1}}, "answer"),
        ({"prompt": True}, "prompt"),
        ({"translation": {"de": "x"}}, "--field.*translation"),
    ],
)
def test_records_that_cannot_be_read_completely_are_refused(
    record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines([record, {"text": "good"}]))
    with pytest.raises(InputError, match=rf"a\.jsonl:1: .*{message}"):
        read_corpus(path)
    read = read_corpus(path, skip_bad=True)
    assert [d.content for d in read.documents] == ["good"]
    assert len(read.bad) == 1


@pytest.mark.parametrize("encoding", [None, "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_long_texts_are_read_to_their_end(tmp_path: Path, encoding: str | None) -> None:
    """Also with a NUL, and where a character lies across a piece that is read."""
    text = "a\0" + "bü\n" * 60_000
    (tmp_path / "a.txt").write_bytes(text.encode(encoding or "utf-8"))
    assert contents(tmp_path / "a.txt", encoding=encoding) == [text]


def test_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner.txt").write_text("text " * 1000)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "inner.txt", "inner.txt")
    with pytest.raises(InputError, match="tar"):
        read_corpus(tmp_path / "a.tar.gz")


def test_tables_of_all_endings_are_read(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink)
    arrow = as_table(RECORDS, pa.ipc.new_file)
    files = {
        "a.pq": sink.getvalue(),
        "a.PARQUET": sink.getvalue(),
        "a.feather": arrow,
        "a.parquet.gz": gzip.compress(sink.getvalue()),
        "a.arrow.zst": zstandard.compress(arrow),
        "semicolons.csv": as_csv(RECORDS, ";"),
        "tabs.csv": as_csv(RECORDS, "\t"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert contents(tmp_path / name) == CONTENTS, name


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"PK\x03\x04", "zip"), (b"%PDF-1.7", "PDF"), (b"GGUF", "GGUF")],
)
def test_files_that_are_not_text_are_named(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "a.txt").write_bytes(data + b"\x01\0 and more")
    with pytest.raises(InputError, match=rf"a\.txt: is .*{kind}"):
        read_corpus(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(data + b" is how such files begin." * 9)
    assert contents(tmp_path / "b.txt")
    assert len(contents(tmp_path)) == 1


def test_rows_with_too_few_or_too_many_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n1,2\n\nshort\n1,2,3\n4,5\n")
    assert contents(tmp_path / "a.csv", skip_bad=True) == ["1\n2", "4\n5"]
    with pytest.raises(InputError, match=r"a\.csv:4: .*1 field"):
        read_corpus(tmp_path / "a.csv")


def test_the_only_list_of_an_object_is_read_and_one_of_several_is_not(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"name": "x", "questions": RECORDS, "tags": ["a"]}))
    (tmp_path / "two.json").write_text(json.dumps({"train": RECORDS, "test": RECORDS}))
    assert contents(tmp_path / "one.json") == CONTENTS
    with pytest.raises(InputError, match="train, test"):
        read_corpus(tmp_path / "two.json")


def test_directories_of_datasets_have_caches_and_cards(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path,
        {
            "README.md": "---\nlicense: mit\ntask_categories:\n- text\n---\n# A dataset",
            "a.jsonl": as_lines(RECORDS).decode(),
            ".gitignore": "\ufeffignored.txt\n!\n[\nalso.txt\n",
            "ignored.txt": "x",
            "also.txt": "x",
        },
    )
    (tree / "cache-0123456789abcdef.arrow").write_bytes(as_table(RECORDS, pa.ipc.new_stream))
    corpus = read_corpus(tree)
    assert [document.content for document in corpus.documents] == CONTENTS
    reasons = dict(corpus.skipped)
    assert reasons["description of a dataset"] == reasons["cache of a dataset"] == 1
    assert reasons["named in .gitignore"] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.txt": "good", "closed/b.txt": "x"})
    (tree / "closed").chmod(0)
    try:
        assert dict(read_corpus(tree).skipped) == {"folder that cannot be read": 1}
    finally:
        (tree / "closed").chmod(0o700)


USER, REPLY = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, REPLY]},
        {"prompt": [USER], "chosen": [REPLY], "rejected": [{"role": "assistant", "content": "No."}]},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": [USER], "chosen": [USER, REPLY]},
        {"prompt": "Hi?", "chosen": [REPLY]},
        {"prompt": "Hi?", "chosen": [USER, REPLY]},
        {"messages": [USER], "response": "Yes."},
        {"conversation": [USER], "answer": "Yes."},
        {"question": "Hi?", "chosen": [REPLY]},
        {"question": "Hi?", "messages": [USER, REPLY]},
    ],
)
def test_conversations_that_end_in_another_column_are_joined(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines([record]))
    (document,) = read_corpus(tmp_path / "a.jsonl").documents
    assert [(turn.role, turn.content) for turn in document.content] == [("user", "Hi?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"Question": "Q?", "Answer": "A."}, "Q?\nA."),
        ({"TEXT": "all"}, "all"),
        ({"Text": "first", "text": "second"}, "second"),
        ({"question": "Q?", "passage": "P.", "answer": True}, "Q?\nP.\ntrue"),
        (
            {"question": "Q?", "options": {"A": "one", "B": "two", "C": None}, "answer": "B"},
            "Q?\nA. one\nB. two\nAnswer: B",
        ),
        ({"question": "Q?", "opa": "one", "opb": "two", "cop": 1, "exp": "e"}, "Q?\nA. one\nB. two\nAnswer: B"),
        ({"question": "Q?", "A": "one", "B": "two", "answer": "A"}, "Q?\nA. one\nB. two\nAnswer: A"),
        ({"goal": "Q?", "sol1": "one", "sol2": "two", "label": 0}, "Q?\nA. one\nB. two\nAnswer: A"),
        ({"question": "Q?", "choices": ["one", "two"], "answer": 1.0}, "Q?\nA. one\nB. two\nAnswer: B"),
        ({"question": "Q?", "choices": ["one", "two"], "answer": -1}, "Q?\nA. one\nB. two"),
        ({"question": "Q?", "choices": ["one", "two"], "label": ""}, "Q?\nA. one\nB. two"),
    ],
)
def test_records_as_people_have_them(tmp_path: Path, record: dict[str, Any], expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines([record]))
    assert contents(tmp_path / "a.jsonl") == [expected]
    table = pa.Table.from_pylist([record])
    pq.write_table(table, tmp_path / "a.parquet")
    assert contents(tmp_path / "a.parquet") == [expected]


def test_a_file_of_a_directory_is_a_corpus_if_any_of_its_records_is(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, {"a.json": '[{"text": null}, {"text": "good"}]', "config.json": '{"port": 80}'})
    with pytest.raises(InputError, match=r"a\.json"):
        read_corpus(tree)
    assert contents(tree, skip_bad=True) == ["good", '{"port": 80}']


def test_a_saved_conversation_is_one_document(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "a.json").write_text(json.dumps(turns))
    (document,) = read_corpus(tmp_path / "a.json").documents
    assert len(document.content) == 2


def test_columns_that_are_named_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,answer\n1,2,3\n")
    with pytest.raises(InputError, match="twice"):
        read_corpus(tmp_path / "a.csv")


def test_long_first_lines_and_single_records_of_json_are_read(tmp_path: Path) -> None:
    long = [{"text": "x" * 200_000}, {"text": "y"}]
    (tmp_path / "lines.json").write_bytes(b"\n" + as_lines(long))
    (tmp_path / "one.json").write_text(json.dumps({"data": RECORDS}))
    (tmp_path / "wide.csv").write_bytes(as_csv(RECORDS, ",").decode().encode("utf-16"))
    (tmp_path / "wide.json").write_bytes(json.dumps(RECORDS).encode("utf-16"))
    assert contents(tmp_path / "lines.json") == [record["text"] for record in long]
    for name in ("one.json", "wide.csv", "wide.json"):
        assert contents(tmp_path / name) == CONTENTS


def test_empty_and_impossible_paths_are_refused() -> None:
    for path in ("", "x" * 5000):
        with pytest.raises(InputError):
            read_corpus(path)


def test_a_missing_package_is_named_in_directories_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(as_lines(RECORDS)))
    (tmp_path / "b.txt").write_text("good")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for path in (tmp_path, tmp_path / "a.jsonl.zst"):
        with pytest.raises(InputError, match=r"a\.jsonl\.zst: .*pip install zstandard"):
            read_corpus(path)


def test_answers_beside_a_conversation_are_all_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        as_lines(
            [
                {"messages": [USER], "reasoning": "six times seven", "answer": 42},
                {"prompt": [USER, REPLY, {"role": "user", "content": "Again?"}], "completion": [REPLY]},
                {"prompt": "Translate.", "completion": [USER, REPLY]},
                {"Prompt": "one", "PROMPT": "two", "output": "three"},
            ]
        )
    )
    answered, repeated, prompted, twice = read_corpus(tmp_path / "a.jsonl").documents
    assert answered.content[-1].content == "six times seven\n42"
    assert [turn.content for turn in repeated.content] == ["Hi?", "Yes.", "Again?", "Yes."]
    assert [turn.content for turn in prompted.content] == ["Translate.", "Hi?", "Yes."]
    assert twice.content == "one\nthree"
    assert dict(read_corpus(tmp_path / "a.jsonl").columns_ignored).keys() == {"PROMPT"}


def test_records_that_have_lists_are_no_lists_of_records(tmp_path: Path) -> None:
    for number, record in enumerate(
        (
            {"title": "t" * 50, "body": "long " * 50, "comments": [{"text": "nice"}]},
            {"Question": "Q?", "Answer": "A.", "Sources": [{"text": "x"}]},
        )
    ):
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="--field"):
        read_corpus(tmp_path / "0.json")
    assert contents(tmp_path / "1.json") == ["Q?\nA."]


def test_wide_encodings_without_a_mark_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text")
    for encoding in ("utf-16", "utf-32"):
        with pytest.raises(InputError, match=r"a\.txt: is not"):
            read_corpus(tmp_path / "a.txt", encoding=encoding)


def test_tables_of_one_column_may_have_commas_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\nHello, world; again\n")
    assert contents(tmp_path / "a.tsv") == ["Hello, world; again"]


def test_pointers_of_git_lfs_are_recognised_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_native.importers.import_file import import_file
    from coe_native.masks.expert_mask import ExpertMask

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"
    for name in ("a.pt", "a.npz", "a.safetensors", "a.json", "a.txt", "a.npy", "a.parquet"):
        (tmp_path / name).write_bytes(pointer)
        for read in (import_file, ExpertMask.load, read_corpus):
            with pytest.raises(InputError, match="git lfs pull"):
                read(tmp_path / name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pointer)))
    with pytest.raises(InputError, match="git lfs pull"):
        read_corpus("-")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"input": "valid or not?", "target": "valid"}, "valid or not?\nvalid"),
        (
            {"question": "Q?", "options": ["A)x", "B)y"], "rationale": "Because.", "correct": "B"},
            "Q?\nA. A)x\nB. B)y\nBecause.\nAnswer: B",
        ),
        (
            {"question": "Q?", "options": {"A": "Nitro", "B": "Iron"}, "answer": "Iron", "answer_idx": "B"},
            "Q?\nA. Nitro\nB. Iron\nAnswer: B",
        ),
        ({"ctx": "He", "endings": ["runs", "sits"], "label": "1"}, "He\nA. runs\nB. sits\nAnswer: B"),
        ({"sentence": "S _", "option1": "x", "option2": "y", "answer": "2"}, "S _\nA. x\nB. y\nAnswer: B"),
        ({"instruction": "Now?", "history": [["Hi", "Hello"]], "output": "Yes."}, "Hi\nHello\nNow?\nYes."),
        (
            {"query": "Add 2.", "tools": [{"name": "add"}], "answers": "add(2)"},
            '[{"name": "add"}]\nAdd 2.\nadd(2)',
        ),
        (
            {"input": "Q?", "output": "Think. " + "x = 1 " * 9, "solution": "x = 1 " * 9},
            "Q?\nThink. " + "x = 1 " * 9,
        ),
        ({"text": "Question: 2+2?\nAnswer: 4", "question": "2+2?", "answer": 4}, "Question: 2+2?\nAnswer: 4"),
        ({"context": "C", "question": "Q?", "answers": {"text": ["a", "a", "b"]}}, "Q?\nC\na\nb"),
        ({"text": "long text", "code": "en"}, "long text"),
        ({"messages": [], "prompt": "Q", "response": "A"}, "Q\nA"),
    ],
)
def test_records_of_known_datasets(tmp_path: Path, record: dict[str, Any], expected: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines([record]))
    assert contents(tmp_path / "a.jsonl") == [expected]


@pytest.mark.parametrize(
    "record",
    [
        {"premise": "A man sleeps in a chair.", "hypothesis": "Somebody is asleep somewhere.", "label": 0},
        {"question": "Short?", "gold_parses": "a much longer column of the answer"},
        {"solution": "def f(): return 1", "task_description": "Write a function that returns one."},
        {"role": "user", "text": "one turn alone"},
    ],
)
def test_one_side_of_a_record_is_not_read_alone(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines([record]))
    with pytest.raises(InputError, match=r"a\.jsonl:1"):
        read_corpus(tmp_path / "a.jsonl")


@pytest.mark.parametrize("as_text", [json.dumps, str])
def test_cells_with_messages_are_parsed(tmp_path: Path, as_text: Callable[[Any], str]) -> None:
    records = [
        {"prompt": "Hi?", "chosen": as_text([REPLY])},
        {"question": "Q?", "answers": as_text({"text": ["a"]})},
    ]
    (tmp_path / "a.jsonl").write_bytes(as_lines(records))
    conversation, squad = read_corpus(tmp_path / "a.jsonl").documents
    assert [turn.content for turn in conversation.content] == ["Hi?", "Yes."]
    assert squad.content == "Q?\na"


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": ["I1", "I2"], "output": ["O1", "O2"]},
        {"instruction": {"0": "I1", "1": "I2"}, "output": {"0": "O1", "1": "O2"}},
        {"code": 200, "data": [{"instruction": "I1", "output": "O1"}, {"instruction": "I2", "output": "O2"}]},
    ],
)
def test_tables_by_columns_and_wrapped_lists_are_rows(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert contents(tmp_path / "a.json") == ["I1\nO1", "I2\nO2"]


def test_json_is_not_read_as_text_because_its_name_is_another(tmp_path: Path) -> None:
    data = as_lines(RECORDS)
    for name in ("a.txt", "a.jsonl.bak", "a"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=r"\.jsonl"):
            read_corpus(tmp_path / name)
    (tmp_path / "a.jl").write_bytes(data)
    (tmp_path / "b.json").write_text('{"text": null}\n' * 30 + '{"text": "good"}\n')
    assert contents(tmp_path / "a.jl") == CONTENTS
    (tmp_path / "c.json").write_text('{"port": 80, "contributors": [{"name": "me"}]}')
    with pytest.raises(InputError, match=r"b\.json:1"):
        read_corpus(tmp_path)
    assert "good" in contents(tmp_path, skip_bad=True)
    assert any("port" in str(text) for text in contents(tmp_path, skip_bad=True))


def test_notebooks_are_their_sources(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"data": {"image/png": "iVBORw0" * 100}}]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    assert contents(tmp_path / "a.ipynb") == ["# Title\ntext\n\nx = 1"]
    (tmp_path / "b.ipynb").write_text("{}")
    with pytest.raises(InputError, match="notebook"):
        read_corpus(tmp_path / "b.ipynb")


def test_ignored_files_of_parents_and_patterns_with_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree(
        tmp_path,
        {".git/config": "", ".gitignore": "*.log\n", "src/a.py": "x = 1", "src/b.log": "log", "src/c.py": "y = 2"},
    )
    assert contents(tree / "src") == ["x = 1", "y = 2"]
    monkeypatch.chdir(tree)
    for pattern in ("c.py", "./c.py", "src/c.py"):
        assert contents(Path("src"), exclude=[pattern]) == ["x = 1"]
    for patterns, message in (("*.py", "--exclude"), ([""], "empty")):
        with pytest.raises(InputError, match=message):
            read_corpus(Path("src"), exclude=patterns)
