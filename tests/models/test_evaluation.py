"""Perplexity and divergence against NumPy, from logits of the same windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.masks import unused_experts

import coe_native as coe
from coe_native.corpus.in_memory import corpus_of
from coe_native.llama.predictions import log_probabilities
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("n_batch", [64, 20])
def test_perplexity_is_that_of_the_second_half_of_each_window(
    model_file: ModelFile, documents: list[list[int]], n_batch: int
) -> None:
    """llama-perplexity's protocol, spelt out: one stream, whole windows, tokens 33 to 63 of 64."""
    stream = np.concatenate([np.array(document) for document in documents])
    with coe.Model(model_file("gemma4", "F32"), n_ctx=64, n_batch=n_batch, n_threads=1) as model:
        result = coe.evaluate(model, corpus_of(documents))
        values = []
        for start in range(0, len(stream) - 63, 64):
            window = stream[start : start + 64]
            log_probabilities = log_softmax(model.logits(window))
            values += [log_probabilities[i - 1, window[i]] for i in range(33, 64)]
    assert result.n_scored == len(values) == 5 * 31
    assert result.perplexity == pytest.approx(np.exp(-np.mean(values)), rel=1e-9)
    expected_error = result.perplexity * np.std(values, ddof=1) / np.sqrt(len(values))
    assert result.error == pytest.approx(expected_error, rel=1e-9)


def test_divergence_from_a_reference(
    model_file: ModelFile, profile_of: Callable[..., coe.RoutingProfile], documents: list[list[int]]
) -> None:
    options = {"n_ctx": 64, "n_batch": 64, "n_threads": 1}
    with (
        coe.Model(model_file("qwen3moe", "F32"), **options) as model,
        coe.Model(model_file("qwen3moe", "F32"), **options) as reference,
    ):
        same = coe.evaluate(model, corpus_of(documents), reference=reference)
        model.apply(unused_experts(profile_of("qwen3moe"), 8))
        masked = coe.evaluate(model, corpus_of([documents[3]]), reference=reference)
        ours = log_softmax(model.logits(documents[3])[32:-1])
        theirs = log_softmax(reference.logits(documents[3])[32:-1])
    assert same.kl_divergence == pytest.approx(0, abs=1e-9)
    assert same.top1_agreement == 1.0
    assert masked.kl_divergence == pytest.approx((np.exp(theirs) * (theirs - ours)).sum(1).mean(), rel=1e-9)
    assert masked.kl_divergence > 0.01
    assert masked.top1_agreement == (ours.argmax(1) == theirs.argmax(1)).mean()


def test_a_reference_with_other_tokens_is_refused(tmp_path: Path) -> None:
    """As many of them: only their texts tell."""
    other = tmp_path / "other.gguf"
    data = demo.MODEL.read_bytes()
    assert data.count(b"import") > 0
    other.write_bytes(data.replace(b"import", b"export", 1))
    text = corpus_of([list(range(5, 40))])
    with (
        coe.Model(demo.MODEL, n_ctx=32) as model,
        coe.Model(other, n_ctx=32) as reference,
    ):
        assert reference.n_vocab == model.n_vocab
        with pytest.raises(coe.InputError, match=r"other\.gguf.*vocabulary"):
            coe.evaluate(model, text, reference=reference)


def test_log_probabilities_start_where_asked(model_file: ModelFile, documents: list[list[int]]) -> None:
    with coe.Model(model_file("olmoe", "F32"), n_ctx=128, n_batch=50, n_threads=1) as model:
        whole = log_probabilities(model, documents[4])
        for first in (1, 2, 49, 50, 51, 52, 96):
            # Not to the last bit: llama.cpp multiplies a matrix with one row in another order than with many.
            np.testing.assert_allclose(
                log_probabilities(model, documents[4], first), whole[first - 1 :], rtol=1e-5
            )
    assert whole.shape == (96,)


def test_bad_windows_are_refused(model_file: ModelFile) -> None:
    with coe.Model(model_file("olmoe", "F32"), n_ctx=8, n_batch=8, n_threads=1) as model:
        for window in ([], list(range(9))):
            with pytest.raises(coe.InputError, match=r"\b8\b"):
                model.logits(window)
        for token in (-1, 256):
            with pytest.raises(coe.InputError, match=f"{token}.*256"):
                model.logits([1, token])
        with pytest.raises(coe.InputError, match=r"few|short"):
            coe.evaluate(model, corpus_of([[1, 2]]))
        with pytest.raises(coe.InputError, match="tokenizer"):
            model.tokenize("text")
    with pytest.raises(coe.CoeError, match="closed"):
        model.logits([1])


def test_a_model_that_computes_nan_is_refused(
    tmp_path: Path, model_file: ModelFile, documents: list[list[int]]
) -> None:
    path = tmp_path / "nan.gguf"
    data = bytearray(model_file("olmoe", "F32").read_bytes())
    norm = coe.MoeModel(model_file("olmoe", "F32")).tensors["output_norm.weight"]
    data[norm.offset : norm.offset + 4] = b"\x00\x00\xc0\x7f"
    path.write_bytes(data)
    with (
        coe.Model(path, n_ctx=64, n_batch=64, n_threads=1) as model,
        pytest.raises(coe.CoeError, match="perplexity"),
    ):
        coe.evaluate(model, corpus_of(documents))


def test_names_must_be_utf_8(tmp_path: Path, model_file: ModelFile) -> None:
    path = tmp_path / "name.gguf"
    path.write_bytes(
        model_file("olmoe", "F32").read_bytes().replace(b"blk.0.attn_q.weight", b"\xfflk.0.attn_q.weight")
    )
    with pytest.raises(coe.InputError, match="255"):
        coe.MoeModel(path)


@pytest.mark.parametrize("row", ["nomic-bert-moe", "llama-embed", "rnd1", "llada-moe"])
def test_models_that_do_not_predict_have_no_perplexity(model_file: ModelFile, row: str) -> None:
    """Encoders have nothing to say of the next token, and diffusion models have been told."""
    text = corpus_of([list(range(100))])
    with coe.Model(model_file(row, "F32"), n_ctx=64, n_threads=1) as model:
        assert not model.predicts
        with pytest.raises(coe.InputError, match="perplexity"):
            coe.evaluate(model, text)


def test_an_encoder_has_embeddings_and_no_logits(model_file: ModelFile) -> None:
    with coe.Model(model_file("nomic-bert-moe", "F32"), n_ctx=64, n_threads=1) as model:
        assert model.embeddings([1, 2, 3]).shape == (3, 256)
        with pytest.raises(coe.InputError, match="logits"):
            model.logits([1, 2, 3])
