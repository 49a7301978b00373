"""Samples: as many of each stratum as asked for, the same each time, and nothing twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import change_words, random_text

import coe_native as coe
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, Message
from coe_native.corpus.in_memory import corpus_of
from coe_native.corpus.near_duplicates import jaccard, near_duplicates, shingles
from coe_native.corpus.read import read_corpus
from coe_native.corpus.sampling import _shared_out, lines, sample


def documents_of(texts: list[str], label: str = "") -> list[Document]:
    return [Document(f"t[{i}]", content, label) for i, content in enumerate(texts)]


def test_near_duplicates_are_found_and_others_left() -> None:
    originals = [random_text(i) for i in range(40)]
    texts = [
        *originals,
        *(change_words(original, 3, i) for i, original in enumerate(originals)),
        *map(random_text, range(90, 99)),
    ]
    found = near_duplicates(documents_of(texts), 0.8)
    assert found[:40] == [None] * 40
    assert found[40:80] == list(range(40))
    assert found[80:] == [None] * 9
    far = near_duplicates(documents_of([random_text(1), change_words(random_text(1), 40)]), 0.8)
    assert far == [None, None]
    assert near_duplicates(documents_of(["The  same, words!", "the same words"]), 1.0) == [None, 0]


@given(st.integers(0, 100), st.integers(0, 100), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(deadline=None)
def test_reported_duplicates_are_similar(first: int, n_words: int, threshold: float) -> None:
    pair = documents_of([random_text(first), change_words(random_text(first), n_words)])
    alike = jaccard(*(shingles(str(document.content)) for document in pair))
    found = near_duplicates(pair, threshold)[1]
    if found is not None:
        assert alike >= threshold
    elif threshold >= 0.5:
        assert alike < min(1.0, threshold + 0.15), "MinHash misses few"


SIZES = st.dictionaries(
    st.text(max_size=2), st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=6
)


@given(st.integers(0, 400), SIZES)
def test_shares_are_fair_and_within_their_bounds(size: int, strata: dict[str, tuple[int, int]]) -> None:
    sizes = {name: n for name, (n, _) in strata.items()}
    most = {name: min(n, cap) for name, (n, cap) in strata.items()}
    shares = _shared_out(size, sizes, most)
    assert sum(shares.values()) == min(size, sum(most.values()))
    assert all(0 <= shares[name] <= most[name] for name in sizes)
    if most == sizes and size <= sum(sizes.values()):
        exact = {name: size * n / sum(sizes.values()) for name, n in sizes.items()}
        assert all(abs(shares[name] - exact[name]) < 1 for name in sizes)


def test_a_sample_has_the_requested_size_per_stratum() -> None:
    labels = {"law": 30, "maths": 60, "art": 3}
    documents = [
        document
        for offset, (label, n) in enumerate(labels.items())
        for document in documents_of([random_text(1000 * offset + i) for i in range(n)], label)
    ]
    corpus = Corpus("questions", tuple(documents))
    drawn = sample([corpus], cap=5).documents
    assert Counter(document.label for document in drawn) == {"law": 5, "maths": 5, "art": 3}
    assert drawn == sample([corpus], cap=5).documents
    assert drawn != sample([corpus], cap=5, seed=1).documents
    shared = sample([corpus], size=31).documents
    assert Counter(document.label for document in shared) == {"law": 10, "maths": 20, "art": 1}
    assert len({document.content for document in shared}) == 31
    capped = sample([corpus], size=40, cap=15).documents
    assert Counter(document.label for document in capped) == {"law": 15, "maths": 15, "art": 3}
    with pytest.raises(coe.InputError, match=r"--size.*--cap"):
        sample([corpus])


def test_near_duplicates_are_drawn_once() -> None:
    texts = [random_text(i) for i in range(20)]
    corpora = [corpus_of(texts, "a"), corpus_of([change_words(original, 2) for original in texts], "b")]
    assert len(sample(corpora, cap=100).documents) == 20
    assert len(sample(corpora, cap=100, threshold=None).documents) == 40


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_sample_is_read_back_as_the_same_corpus(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": random_text(i), "category": f"c{i % 3}", "year": 2000 + i % 2} for i in range(12)]
    path = tmp_path / f"questions.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for column, values in (("category", {"c0", "c1", "c2"}), ("year", {"2000", "2001"})):
        drawn = sample([read_corpus(path, label=column)], cap=2).documents
        assert {document.label for document in drawn} == values
        out = tmp_path / "sample.jsonl"
        out.write_bytes(b"".join(lines(drawn, column)))
        again = read_corpus(out, label=column)
        assert [(d.content, d.label) for d in again.documents] == [(d.content, d.label) for d in drawn]
    with pytest.raises(coe.InputError, match=rf"questions\.{suffix}:1: .*'subject'"):
        read_corpus(path, label="subject")


def test_conversations_and_tokens_survive_sampling(tmp_path: Path) -> None:
    documents = [
        Document("a", (Message("user", "Hello"), Message("assistant", "Good day"))),
        Document("b", (1, 2, 3)),
        Document("c", "text \ud800"),
    ]
    out = tmp_path / "sample.jsonl"
    out.write_bytes(b"".join(lines(documents, None)))
    assert [document.content for document in read_corpus(out).documents] == [d.content for d in documents]
