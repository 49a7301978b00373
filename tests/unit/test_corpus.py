"""Paths to documents, documents to windows, windows to batches."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_native.corpus import bundles as bundles_module
from coe_native.corpus.batching import batches, packed, windows
from coe_native.corpus.bundles import Shard, bundles
from coe_native.corpus.documents import Message
from coe_native.corpus.in_memory import corpus_of
from coe_native.corpus.read import read_corpus
from coe_native.errors import InputError


def contents(path: Path, field: str | None = None) -> list[object]:
    return [document.content for document in read_corpus(path, field).documents]


def test_a_directory_is_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.py").write_text("first")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "picture.tiff").write_bytes(b"II\xff\xd8\xff")
    np.save(tmp_path / "sub" / "d.npy", np.array([7, 8]))
    (tmp_path / "umlaut.txt").write_bytes("\ufeffä".encode() + "ä".encode() * 5000)
    assert contents(tmp_path) == ["first", "second", "third", "fourth", (7, 8), "ä" * 5001]
    assert read_corpus(tmp_path).n_skipped == 3


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}
CONVERSATION = (Message("user", "hi"), Message("assistant", "yes"))
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
NAMELESS = {"type": "function", "function": CALL["function"]}

RECORDS = [
    ({"text": "t", "prompt": "p"}, "t"),
    ({"content": "c", "path": "a.py"}, "c"),
    ({"prompt": "p", "completion": "c"}, "p\nc"),
    ({"prompt": "p\n", "completion": "c"}, "p\nc"),
    ({"prompt": "p", "completion": " c"}, "p c"),
    ({"question": "q", "answer": "a"}, "q\na"),
    ({"question": "2 + 3?", "answer": 5}, "2 + 3?\n5"),
    ({"question": "is 5 odd?", "answer": "5"}, "is 5 odd?\n5"),
    ({"instruction": "i", "input": "n", "output": "o", "other": 1}, "i\nn\no"),
    ({"instruction": "i", "input": "", "output": "o"}, "i\no"),
    ({"instruction": "i", "context": "x", "response": "r", "category": "c"}, "i\nx\nr"),
    ({"output": "o", "input": "n", "instruction": "i"}, "i\nn\no"),
    ({"system_prompt": "s", "question": "q", "response": "r"}, "s\nq\nr"),
    ({"task_id": 1, "prompt": "def f():\n", "canonical_solution": "    return 1\n"}, "def f():\n    return 1\n"),
    ({"text": "Add two numbers.", "code": "def add"}, "Add two numbers.\ndef add"),
    ({"problem": "p", "solution": "s", "answer": "a"}, "p\ns\na"),
    ({"instruction": "i", "input": float("nan"), "output": "o"}, "i\no"),
    ({"text": "", "messages": [USER, ASSISTANT]}, CONVERSATION),
    ({"messages": [], "conversations": [USER, ASSISTANT]}, CONVERSATION),
    ({"messages": [{"from": "human", "content": "", "value": "hi"}]}, CONVERSATION[:1]),
    ({"messages": [USER], "tools": "[]"}, CONVERSATION[:1]),
    (
        {"messages": [{"role": "assistant", "content": "yes", "thinking": "hm"}]},
        (Message("assistant", "yes", '{"reasoning_content": "hm"}'),),
    ),
    (
        {"messages": [{"role": "assistant", "content": None, "function_call": CALL["function"]}]},
        (
            Message(
                "assistant",
                "",
                json.dumps({"tool_calls": [{k: CALL[k] for k in ("type", "function")}]}, sort_keys=True),
            ),
        ),
    ),
    ({"query": "q", "response": "r"}, "q\nr"),
    ({"instruction": "do it", "output": "done", "text": "### do it\n### done"}, "### do it\n### done"),
    ({"text": "q: 5 or 6?", "answer": "5"}, "q: 5 or 6?\n5"),
    (
        {"context": "c", "question": "q", "answers": {"text": ["one", "two"], "answer_start": [1, 2]}},
        "q\nc\none\ntwo",
    ),
    ({"code": "x = 1"}, "x = 1"),
    ({"tokens": [1, 2, 3]}, (1, 2, 3)),
    ({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}, (1, 2, 3)),
    ({"prompt": "p", "tokens": 5}, "p"),
    ({"question": "q", "options": ["x", "y"], "answer": "B", "answer_index": 1}, "q\nA. x\nB. y\nAnswer: B"),
    ({"question": "q", "choices": ["x", "y"], "answer": 1}, "q\nA. x\nB. y\nAnswer: B"),
    ({"question": "q", "choices": {"text": ["x"], "label": ["1"]}, "answerKey": "1"}, "q\n1. x\nAnswer: 1"),
    ({"messages": [USER, ASSISTANT]}, CONVERSATION),
    ({"messages": json.dumps([USER, ASSISTANT])}, CONVERSATION),
    ({"prompt": "hi", "messages": [USER, ASSISTANT]}, CONVERSATION),
    ({"prompt": "hi", "chosen": [USER, ASSISTANT], "rejected": [USER]}, CONVERSATION),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}, CONVERSATION),
    ({"system": "s", "conversation": [USER, ASSISTANT]}, (Message("system", "s"), *CONVERSATION)),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
            ]
        },
        CONVERSATION[:1],
    ),
    ({"messages": [{"role": "developer", "content": "d"}, USER]}, (Message("developer", "d"), *CONVERSATION[:1])),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        (Message("assistant", "", json.dumps({"tool_calls": [CALL]}, sort_keys=True)),),
    ),
]
"""Records as datasets have them, and their contents. None of them loses text."""


@pytest.mark.parametrize(("record", "expected"), RECORDS)
def test_jsonl_records_of_all_kinds_are_read(tmp_path: Path, record: dict[str, object], expected: object) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(record))
    assert contents(tmp_path / "c.jsonl") == [expected]
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "c.parquet")
    assert contents(tmp_path / "c.parquet") == [expected]


def test_field_names_the_column(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"body": "yes", "text": "no"}')
    assert contents(tmp_path / "c.jsonl", "body") == ["yes"]


def test_token_ids_are_read_from_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([5, 6, 7], np.int32))
    np.save(tmp_path / "two.npy", np.arange(6, dtype=np.int64).reshape(2, 3))
    assert contents(tmp_path / "one.npy") == [(5, 6, 7)]
    assert contents(tmp_path / "two.npy") == [(0, 1, 2), (3, 4, 5)]
    # Other orders of bytes and of axes, and the second version of the header.
    odd = np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3))
    with (tmp_path / "odd.npy").open("wb") as file:
        np.lib.format.write_array(file, odd, version=(2, 0))
    assert contents(tmp_path / "odd.npy") == [(0, 1, 2), (3, 4, 5)]


def test_a_token_count_is_not_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one", "tokens": 5}\n')
    assert contents(tmp_path / "a.jsonl") == ["one"]


def test_other_columns_of_parquet_do_not_matter(tmp_path: Path) -> None:
    """Some hold what Python has no values for."""
    path = tmp_path / "a.parquet"
    late = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"when": late, "text": ["one"], "body": ["two"]}), path)
    assert contents(path) == ["one"]
    assert contents(path, "body") == ["two"]
    with pytest.raises(InputError, match=r"'head'.*when, text, body"):
        read_corpus(path, "head")
    pq.write_table(pa.table({"when": late}), path)
    with pytest.raises(InputError, match=r"text, messages.*when"):
        read_corpus(path)
    pq.write_table(pa.table({"text": late}), path)
    with pytest.raises(InputError, match=r"a\.parquet"):
        read_corpus(path)


def test_parquet_must_hold_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["AAAA", "BBBB"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"AAAA", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(InputError, match=r"a\.parquet"):
        read_corpus(path)


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Bomb(trace)))
    array = np.empty(1, object)
    array[0] = Bomb(trace)
    np.save(tmp_path / "o.npy", array, allow_pickle=True)
    for name in ("p.npy", "o.npy"):
        with pytest.raises(InputError, match=name):
            read_corpus(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"a\xff\xfe", "UTF-8"),
        ("a.txt", b"", r"a\.txt"),
        ("a.jsonl", b'{"text": "x"}\n{', "a.jsonl:2: "),
        ("a.jsonl", b"[1]", "JSON"),
        ("a.jsonl", b'{"body": "x"}', "--field"),
        ("a.jsonl", b'{"tokens": [1, "2"]}', "tokens|numbers"),
        ("a.jsonl", b'{"tokens": 5}', "tokens|numbers"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "message"),
        ("a.npy", b"\x93NUMPY", r"a\.npy"),
        ("a.parquet", b"PAR1", "Parquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_corpus(tmp_path / name)
    assert name in str(caught.value)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(1, 32),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_batches_hold_every_token_once(lengths: list[int], n_batch: int, n_sequences: int, n_ctx: int) -> None:
    """Every window's tokens come once, in order, at positions from 0, in one sequence of its own."""
    start = 0
    expected, documents = [], []
    for length in lengths:
        documents.append(np.arange(start, start + length, dtype=np.int32))
        start += length
    for document in documents:
        expected += [window.tolist() for window in windows([document], n_ctx)]
    assert all(len(window) <= n_ctx for window in expected)

    found: list[list[int]] = []
    open_sequences: dict[int, list[int]] = {}
    for batch in batches((w for d in documents for w in windows([d], n_ctx)), n_batch, n_sequences):
        assert 0 < len(batch.tokens) <= n_batch
        assert len(set(batch.sequences.tolist())) <= n_sequences
        if batch.n_begun:
            found += open_sequences.values()
            open_sequences = {}
        for token, position, sequence in zip(batch.tokens, batch.positions, batch.sequences, strict=True):
            window = open_sequences.setdefault(int(sequence), [])
            assert position == len(window)
            window.append(int(token))
    found += open_sequences.values()
    assert found == expected


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 60), st.integers(1, 32), st.integers(1, 5))
def test_windows_are_packed_as_planned(lengths: list[int], n_ctx: int, n_batch: int, n_sequences: int) -> None:
    """Brute force: every window lies in the first batch that had room for it, the longest first."""
    parts = [np.full(min(length, n_ctx), number, np.int32) for number, length in enumerate(lengths)]
    planned: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(parts)), key=lambda number: -len(parts[number])):
        length = min(len(parts[number]), n_batch)
        fits = [at for at, left in enumerate(room) if length <= left and len(planned[at]) < n_sequences]
        if not fits:
            planned.append([])
            room.append(n_batch)
        at = fits[0] if fits else len(planned) - 1
        planned[at].append(number)
        room[at] -= length
    found = list(packed(parts, n_ctx, n_batch, n_sequences))
    assert [[int(part[0]) for part in batch] for batch in found] == planned
    for batch in found:
        run = list(batches(batch, n_batch, n_sequences))
        assert len(run) == 1 or len(batch) == 1
        assert np.concatenate([part.tokens for part in run]).tolist() == np.concatenate(batch).tolist()


def test_packing_fills_batches() -> None:
    """Documents as they are: in their own order, batches of 512 are some 93 % full."""
    lengths = np.random.default_rng(0).integers(30, 121, 1700).tolist()
    parts = [np.zeros(length, np.int32) for length in lengths]
    least = -(-sum(lengths) // 512)
    assert len(list(packed(parts, 512, 512, 16))) <= 1.01 * least
    assert len(list(batches(parts, 512, 16))) > 1.05 * least


@given(st.integers(1, 100), st.integers(1, 20))
def test_every_window_of_a_text_starts_with_bos(length: int, n_ctx: int) -> None:
    document = np.arange(100, 100 + length, dtype=np.int32)
    parts = list(windows([document], n_ctx, bos=100))
    assert all(0 < len(part) <= n_ctx for part in parts)
    if n_ctx > 1:
        assert all(part[0] == 100 for part in parts)
        parts = [parts[0], *(part[1:] for part in parts[1:])]
    assert np.concatenate(parts).tolist() == document.tolist()
    assert [p.tolist() for p in windows([document], n_ctx, bos=5)] == [
        p.tolist() for p in windows([document], n_ctx)
    ]


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(1, 20), st.booleans())
def test_windows_do_not_depend_on_parts(lengths: list[int], n_ctx: int, begins_with_bos: bool) -> None:
    document = np.arange(100, 100 + sum(lengths), dtype=np.int32)
    bos = 100 if begins_with_bos else 5
    parts = np.split(document, np.cumsum(lengths))
    found = [window.tolist() for window in windows(parts, n_ctx, bos)]
    assert found == [window.tolist() for window in windows([document], n_ctx, bos)]


def test_equal_corpora_have_equal_digests() -> None:
    first = corpus_of(["a", [1, 2]])
    assert first.sha256 == corpus_of(["a", (1, 2)], name="other").sha256
    assert first.sha256 != corpus_of(["a", [1, 3]]).sha256


@given(
    st.lists(st.lists(st.text(min_size=1, max_size=300), max_size=12), max_size=4),
    st.integers(1, 6),
    st.integers(1, 800),
)
def test_shards_share_out_all_documents(texts: list[list[str]], count: int, bundle_size: int) -> None:
    corpora = [corpus_of(documents) for documents in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles_module, "BUNDLE_SIZE", bundle_size)
        whole = list(bundles(corpora))
        shards = [list(bundles(corpora, Shard(index, count))) for index in range(1, count + 1)]
    expected = [(index, d) for index, corpus in enumerate(corpora) for d in corpus.documents]
    assert [pair for bundle in whole for pair in bundle.documents] == expected
    assert all(bundle.size >= bundle_size for bundle in whole[:-1])
    assert all(sum(d.size for _, d in bundle.documents[:-1]) < bundle_size for bundle in whole)
    assert [shards[at % count][at // count] for at in range(len(whole))] == whole
    assert sum(map(len, shards)) == len(whole)


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(1, 6))
def test_every_shard_takes_part_in_long_documents(lengths: list[int], count: int) -> None:
    """The bundle without a long document goes to one shard; of a long one, each part goes to one shard."""
    corpora = [corpus_of(["x" * length for length in lengths])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles_module, "BUNDLE_SIZE", 100)
        patch.setattr(bundles_module, "LONG_DOCUMENT", 200)
        whole = list(bundles(corpora))
        shards = [list(bundles(corpora, Shard(index, count))) for index in range(1, count + 1)]
        for number, bundle in enumerate(whole):
            assert bundle.shard == Shard()
            takers = [found for shard in shards for found in shard if found.documents == bundle.documents]
            if bundle.is_long:
                assert sorted(taker.shard.index for taker in takers) == list(range(1, count + 1))
                assert next(b for b in shards[number % count] if b.documents == bundle.documents).shard.index == 1
        expected = sum(1 if not bundle.is_long else count for bundle in whole)
        assert sum(map(len, shards)) == expected


def test_documents_in_memory_are_texts_conversations_and_token_ids() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    given = ["text", "", [1, 2], np.array([3, 4], np.int32), turns]
    corpus = corpus_of(given)
    assert [document.content for document in corpus.documents] == ["text", (1, 2), (3, 4), CONVERSATION]
    assert [document.content for document in corpus_of(turns).documents] == [CONVERSATION]


@pytest.mark.parametrize(
    "document", [None, 5, b"bytes", [1.5], [None], [1, "2"], [{"role": "user"}], [{"content": "x"}]]
)
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(InputError, match=r"documents\[1\]"):
        corpus_of(["good", document])  # type: ignore[list-item]
    with pytest.raises(InputError, match="list of texts"):
        corpus_of("one text")
