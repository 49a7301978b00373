"""Corpora that are not held in memory: the same documents, digests, samples and shards as if they were."""

from __future__ import annotations

import gzip
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.limits import lower_limits
from support.texts import change_words, random_text

from coe_native.corpus import near_duplicates, sampling
from coe_native.corpus.bundles import Shard, bundles
from coe_native.corpus.corpora import Corpus, StoredDocuments
from coe_native.corpus.documents import text_of
from coe_native.corpus.long_content import LongText, LongTokens
from coe_native.corpus.read import read_corpus
from coe_native.corpus.readers import decoding
from coe_native.corpus.statistics import stats
from coe_native.errors import InputError

TEXTS = [random_text(seed, 20 + 17 * (seed % 9)) for seed in range(60)]
PROSE = "\n".join(f"Zeile {text} – ä" for text in TEXTS)


def write_lines(path: Path) -> None:
    path.write_text(
        "".join(json.dumps({"text": text, "kind": f"k{i % 3}"}) + "\n" for i, text in enumerate(TEXTS))
    )


def write_directory(path: Path) -> None:
    path.mkdir()
    write_lines(path / "b.jsonl")
    (path / "a.txt").write_text(PROSE)
    (path / "c.txt").write_bytes(PROSE.encode() + b"\xff")
    (path / "d.py").write_text("x = 1\n")


def write_tokens(path: Path) -> None:
    np.save(path, np.arange(600).reshape(6, 100))


def write_one_row(path: Path) -> None:
    np.save(path, np.arange(600, dtype=np.uint16))


WRITERS: dict[str, Callable[[Path], None]] = {
    "lines.jsonl": write_lines,
    "list.json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS])) and None,
    "table.csv": lambda path: path.write_text("text\n" + "\n".join(TEXTS)) and None,
    "prose.txt": lambda path: path.write_text(PROSE) and None,
    "marked.txt": lambda path: path.write_bytes(PROSE.encode("utf-16")) and None,
    "prose.txt.gz": lambda path: path.write_bytes(gzip.compress(PROSE.encode())) and None,
    "rows.npy": write_tokens,
    "row.npy": write_one_row,
    "directory": write_directory,
}


@pytest.mark.parametrize("name", WRITERS)
def test_large_corpora_are_those_that_memory_would_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    held = read_corpus(path)
    lower_limits(monkeypatch)
    large = read_corpus(path)
    assert isinstance(held.documents, tuple)
    assert not any(isinstance(document.content, LongText | LongTokens) for document in held.documents)
    assert isinstance(large.documents, StoredDocuments)
    for _ in range(2):
        assert [(d.place, text_of(d)) for d in large.documents] == [(d.place, text_of(d)) for d in held.documents]
    assert len(large.documents) == len(held.documents)
    assert (large.sha256, large.old_sha256) == (held.sha256, held.old_sha256)
    assert (large.size, large.skipped, large.columns_read) == (held.size, held.skipped, held.columns_read)


def test_bad_records_are_left_out_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    write_lines(path)
    path.write_text("not JSON\n" + path.read_text() + '{"text": null}\n')
    lower_limits(monkeypatch)
    corpus = read_corpus(path, skip_bad=True)
    assert len(corpus.bad) == 2
    assert [document.content for document in corpus.documents] == TEXTS


@pytest.mark.parametrize("name", ["lines.jsonl", "prose.txt", "rows.npy"])
def test_files_that_change_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    lower_limits(monkeypatch)
    corpus = read_corpus(path)
    data = path.read_bytes()
    for changed in (data[:-50], data[:-3] + data[-3:].replace(b"1", b"2") + b"", data + b"\n"):
        time.sleep(0.01)  # longer than the clock of the file system
        path.write_bytes(changed)
        with pytest.raises(InputError, match=name):
            [text_of(document) for document in corpus.documents]
    path.unlink()
    with pytest.raises(InputError, match=name):
        list(corpus.documents)


def test_a_long_text_in_memory_notices_that_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document of a long text is kept, and its text is not."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    monkeypatch.setattr("coe_native.corpus.readers.text.LONG", 2000)
    corpus = read_corpus(path)
    assert isinstance(corpus.documents, tuple)
    path.write_text(PROSE * 2)
    with pytest.raises(InputError, match=r"prose\.txt.*changed"):
        corpus.sha256  # noqa: B018


def test_long_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lower_limits(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(PROSE.encode())))
    corpus = read_corpus("-")
    for _ in range(2):
        assert [text_of(document) for document in corpus.documents] == [PROSE]
    (document,) = corpus.documents
    assert isinstance(document.content, LongText)
    pairs = zip(document.content, document.content, strict=True)
    assert "".join(first for first, second in pairs if first == second) == PROSE, "two readings at once"


@given(
    st.text(max_size=60),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "shift_jis", "gb18030", "cp1252"]),
    st.integers(1, 9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_decoded_in_pieces_of_any_size(text: str, encoding: str, size: int) -> None:
    data = text.encode(encoding, errors="ignore")
    named = None if encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else encoding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_has_many_controls", lambda text: False)
        whole = decoding.decoded(data, "place", named)
        patch.setattr(decoding, "PIECE", max(size, 4))  # a byte order mark is recognised in one piece
        assert decoding.decoded(data, "place", named) == whole == data.decode(named or decoding.encoding_of(data))


@given(st.text(max_size=40), st.binary(min_size=1, max_size=3), st.integers(4, 9))
def test_bad_bytes_are_named_by_their_position(text: str, bad: bytes, size: int) -> None:
    data = b"abcd" + text.encode() + bad + b"!"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "_has_many_controls", lambda text: False)
            patch.setattr(decoding, "PIECE", size)
            with pytest.raises(InputError, match=rf"\(byte {error.start}\)"):
                decoding.decoded(data, "place")


def test_large_corpora_are_sampled_and_counted_as_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    texts = [*TEXTS, TEXTS[3], *(change_words(text, 2) for text in TEXTS[20:30])]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    held = read_corpus(path)
    lower_limits(monkeypatch)
    large = read_corpus(path)
    assert isinstance(large.documents, StoredDocuments)
    assert stats([large]) == stats([held])
    assert stats([large])[0].duplicates == 1
    assert stats([large])[0].near_duplicates >= 5
    for options in ({"size": 20}, {"cap": 10, "threshold": None}, {"size": 40, "seed": 4}):
        assert sampling.sample([large], **options) == sampling.sample([held], **options)  # type: ignore[arg-type]


def test_near_duplicates_are_looked_for_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from coe_native.corpus.in_memory import corpus_of

    corpus = corpus_of([*TEXTS, *TEXTS])
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 50)
    found = stats([corpus])[0]
    assert (found.documents, found.compared, found.duplicates) == (120, 50, 60)
    monkeypatch.setattr(sampling, "MOST_COMPARED", 50)
    drawn = sampling.sample([corpus], cap=100)
    assert (len(drawn.documents), drawn.available, drawn.compared) == (60, 120, 50)
    assert len({document.content for document in drawn.documents}) == 60, "exact duplicates are left out"
    assert len(sampling.sample([corpus], cap=100, threshold=None).documents) == 100
    monkeypatch.setattr(near_duplicates, "MOST_SHINGLES", 500)
    drawn = sampling.sample([corpus], size=60)
    assert len({document.content for document in drawn.documents}) == 60
    assert drawn.compared < 20


@pytest.mark.parametrize("shuffled", [False, True])
def test_bundles_of_large_corpora_are_those_of_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    write_lines(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text(PROSE)

    def read() -> list[Corpus]:
        return [read_corpus(tmp_path / name) for name in ("a.jsonl", "b.txt")]

    def made(corpora: list[Corpus], shard: Shard) -> list[list[tuple[int, str]]]:
        return [
            [(index, text_of(document)) for index, document in bundle.documents]
            for bundle in bundles(corpora, shard, shuffled=shuffled)
        ]

    monkeypatch.setattr("coe_native.corpus.bundles.BUNDLE_SIZE", 5000)
    monkeypatch.setattr("coe_native.corpus.bundles.SHUFFLED_BUNDLE_SIZE", 2000)
    held = read()
    expected = [made(held, Shard(index, 3)) for index in (1, 2, 3)]
    lower_limits(monkeypatch)
    large = read()
    assert isinstance(large[0].documents, StoredDocuments)
    assert [made(large, Shard(index, 3)) for index in (1, 2, 3)] == expected


def test_a_second_reading_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a profile would be of fewer documents than its digest says."""
    from coe_native.corpus import read as reading

    write_lines(tmp_path / "a.jsonl")
    lower_limits(monkeypatch)
    corpus = read_corpus(tmp_path / "a.jsonl", skip_bad=True)
    whole = reading._RECORDS[".jsonl"]

    def failing(path: Path, columns: Any) -> Iterator[Any]:
        for number, record in enumerate(whole(path, columns)):
            yield record if number < 30 else InputError(f"{path}: the helper has crashed")

    monkeypatch.setitem(reading._RECORDS, ".jsonl", failing)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="crashed"):
        list(corpus.documents)
