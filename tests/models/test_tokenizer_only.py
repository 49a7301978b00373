"""Models of which only the tokenizer is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.texts import change_words, random_text

import coe_native as coe
from coe_native.corpus.read import read_corpus
from coe_native.corpus.statistics import stats
from coe_native.recipes import demo


def test_tokens_are_those_of_the_loaded_model(model_file: Callable[[str, str], Path]) -> None:
    with coe.Model(demo.MODEL, n_ctx=32) as whole, coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as bare:
        for document in demo.corpus("cpp", "test").documents:
            assert whole.tokenize(str(document.content)).tolist() == bare.tokenize(str(document.content)).tolist()
    with (
        coe.Model(model_file("olmoe", "F32"), n_ctx=32, tokenizer_only=True) as model,
        pytest.raises(coe.InputError, match="tokenizer"),
    ):
        model.tokenize("text")


def test_corpus_stats_count_documents_duplicates_and_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in (random_text(1), random_text(1), random_text(2)))
    )
    (tmp_path / "b.txt").write_text(change_words(random_text(1), 2))
    corpora = [read_corpus(tmp_path / name) for name in ("a.jsonl", "b.txt")]
    with coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as model:
        first, second = stats(corpora, model)
        n_tokens = [[len(model.tokenize(str(d.content))) for d in corpus.documents] for corpus in corpora]
        with pytest.raises(coe.CoeError, match=r"weights|tokenizer"):
            model.logits([1, 2])
    assert (first.documents, first.duplicates, first.near_duplicates) == (3, 1, 0)
    assert (second.documents, second.duplicates, second.near_duplicates) == (1, 0, 1)
    assert [first.tokens, second.tokens] == [sum(of_corpus) for of_corpus in n_tokens]
    assert first.characters == sum(len(str(document.content)) for document in corpora[0].documents)
    assert stats(corpora)[0].tokens is None
