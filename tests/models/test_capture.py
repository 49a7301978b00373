"""The tap against an independent capture, and what must hold of every profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.random_models import moe_layers, write_random_model
from support.slow_capture import SlowCapture

import coe_native as coe
from coe_native.corpus import batching, bundles
from coe_native.corpus.documents import Document
from coe_native.corpus.in_memory import corpus_of
from coe_native.profiling.run import Progress
from coe_native.routing.output_norms import OutputNorms

ModelFile = Callable[[str, str], Path]


def test_counts_equal_an_independent_capture_when_quantised(
    model_file: ModelFile, documents: list[list[int]], family: str
) -> None:
    """One document a batch, so that both run the very same graphs. test_architectures.py has the F32 models."""
    path = model_file(family, "Q4_K_M")
    with coe.Model(path, n_ctx=128, n_batch=128, n_threads=2) as model:
        profile = coe.profile(model, documents)
    slow = SlowCapture(path, 128)
    try:
        slow.run(documents, 128)
    finally:
        slow.close()
    assert profile.layers == tuple(moe_layers(family))
    for index, block in enumerate(profile.layers):
        histogram, weight_sum = slow.counts(block, profile.n_experts)
        np.testing.assert_array_equal(profile.histograms[index], histogram)
        np.testing.assert_allclose(profile.weight_sum[index], weight_sum, rtol=1e-6)


def test_every_layer_sees_every_token(profile_of: Callable[..., coe.RoutingProfile], family: str) -> None:
    profile = profile_of(family)
    n_tokens = 40 + 130 + 1 + 64 + 97 + 33
    assert profile.n_tokens == n_tokens
    assert (profile.histograms.sum(axis=(1, 2)) == n_tokens * profile.top_k).all()
    assert (profile.histograms.sum(axis=1) == n_tokens).all()


def test_weights_of_normalised_routers_sum_to_one(
    profile_of: Callable[..., coe.RoutingProfile], family: str
) -> None:
    totals = profile_of(family).weight_sum.sum(axis=(1, 2)) / profile_of(family).n_tokens
    if family == "olmoe":
        assert (totals < 0.95).all()
    else:
        np.testing.assert_allclose(totals, 1.0, rtol=1e-6)


def test_ranks_descend_by_weight(profile_of: Callable[..., coe.RoutingProfile], family: str) -> None:
    """Rank r's mean weight falls with r, also where the selection goes by another score (DeepSeek)."""
    profile = profile_of(family)
    mean = profile.weight_sum.sum(axis=1) / profile.n_tokens
    assert (np.diff(mean, axis=1) < 0).all()


def test_batching_changes_no_more_than_near_ties(model_file: ModelFile, documents: list[list[int]]) -> None:
    """Windows that share a batch, or are cut by it, are counted as if each ran alone."""
    path = model_file("qwen3moe", "F32")
    made = []
    for n_batch, n_sequences in ((128, 1), (128, 16), (48, 16), (17, 3)):
        with coe.Model(path, n_ctx=128, n_batch=n_batch, n_sequences=n_sequences, n_threads=1) as model:
            made.append(coe.profile(model, documents))
    for other in made[1:]:
        moved = np.abs(other.histograms - made[0].histograms).sum() / 2
        assert moved <= 0.005 * made[0].histograms.sum()
        np.testing.assert_allclose(other.weight_sum.sum(), made[0].weight_sum.sum(), rtol=1e-4)


def test_a_model_can_be_profiled_twice(model_file: ModelFile, documents: list[list[int]]) -> None:
    """Nothing of one run leaks into the next, and logits are whole again after it."""
    with coe.Model(model_file("gemma4", "F32"), n_ctx=128, n_batch=64, n_threads=1) as model:
        before = model.logits(documents[0])
        first = coe.profile(model, documents)
        second = coe.profile(model, documents)
        np.testing.assert_array_equal(model.logits(documents[0]), before)
    np.testing.assert_array_equal(first.histograms, second.histograms)
    np.testing.assert_array_equal(first.weight_sum, second.weight_sum)


@pytest.mark.parametrize("top_k", [1, 16])
def test_smallest_and_largest_top_k(tmp_path: Path, documents: list[list[int]], top_k: int) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, "qwen3moe", top_k=top_k)
    profile = coe.profile(path, documents, n_ctx=128, n_threads=1)
    assert profile.top_k == top_k
    assert profile.histograms.sum() == len(profile.layers) * profile.n_tokens * top_k


def test_a_router_that_chooses_another_number_is_refused(tmp_path: Path) -> None:
    """The metadata says 4; a tap told 3 must notice instead of counting wrongly."""
    path = tmp_path / "model.gguf"
    write_random_model(path, "llama")
    with coe.Model(path, n_ctx=128, n_threads=1) as model:
        with pytest.raises(RuntimeError, match=r"\b4\b"):
            model.session.watch(model.moe.blocks, 16, [3] * len(model.moe.blocks))
        assert len(model.logits([1, 2])) == 2  # nothing is watched any more


def test_a_router_in_a_block_without_one_by_the_header_is_refused(model_file: ModelFile) -> None:
    refused = pytest.raises(RuntimeError, match=r"block 1\b")
    with coe.Model(model_file("qwen3moe", "F32"), n_ctx=128, n_threads=1) as model, refused:
        model.session.watch([0, 2], 16, [4, 4])


def test_a_layer_that_sees_too_few_tokens_is_refused(tmp_path: Path) -> None:
    """A tap told of a layer that has no router must say so: its histogram would be empty."""
    path = tmp_path / "model.gguf"
    write_random_model(path, "deepseek2")
    with coe.Model(path, n_ctx=128, n_threads=1) as model:
        model.session.watch([0, 1, 2], model.moe.n_experts, [model.moe.top_k] * 3)
        with pytest.raises(RuntimeError, match=r"\b0\b.*\b5\b.*block 0"):
            model.session.decode(*(np.arange(5, dtype=np.int32),) * 2, np.zeros(5, np.int32))


@pytest.mark.parametrize("most_ahead", [1, 1000, 1 << 22])
@pytest.mark.parametrize("error", [coe.InputError, MemoryError])
def test_a_bad_document_is_found_early(
    model_file: ModelFile, monkeypatch: pytest.MonkeyPatch, error: type[Exception], most_ahead: int
) -> None:
    """All text is tokenised while the first batches run, however little of it is kept; whatever goes wrong."""
    told = r"documents\[1000\]"

    def fail(document: Document, model: batching.Tokenizer) -> Iterator[batching.Tokens]:
        if document.place == "documents[1000]" and error is MemoryError:
            raise MemoryError(f"{document.place}: has a token id outside")
        return batching.token_parts(document, model)

    monkeypatch.setattr("coe_native.profiling.cutter.token_parts", fail)
    monkeypatch.setattr("coe_native.profiling.cutter.MOST_AHEAD", most_ahead)
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 100)
    seen = []

    def follow(progress: Progress) -> None:
        time.sleep(0.01)
        seen.append(progress)

    documents = [*([[1, 2, 3] * 10] * 1000), [1, 256]]
    with coe.Model(model_file("qwen3moe", "F32"), n_ctx=32, n_batch=32, n_threads=1) as model:
        with pytest.raises(error, match=told):
            coe.profile_corpora(model, [corpus_of(documents)], progress=follow)
        assert len(seen) < 500
        profile = coe.profile_corpora(model, [corpus_of(documents[:50])], progress=follow)
    assert seen[-1].tokens == seen[-1].total == profile.n_tokens == 50 * 30
    assert profile.corpora[0].tokens == 50 * 30


def test_a_bundle_is_computed_independently_of_others(
    model_file: ModelFile, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Documents that share batches, some cut by them: shards add up to the last bit, in any order."""
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 1000)
    random = np.random.default_rng(11)
    documents = [random.integers(0, 256, length).tolist() for length in random.integers(1, 130, 40)]
    with coe.Model(model_file(family, "Q4_K_M"), n_ctx=128, n_batch=100, n_sequences=16, n_threads=2) as model:
        whole = coe.profile(model, documents, stats="contribution")
        shards = [
            coe.profile(model, documents, shard=coe.Shard(index, 3), stats="contribution") for index in (2, 3, 1)
        ]
    merged = coe.merge(shards)
    assert min(shard.n_tokens for shard in shards) > 0
    np.testing.assert_array_equal(merged.histograms, whole.histograms)
    np.testing.assert_array_equal(merged.weight_sum, whole.weight_sum)
    np.testing.assert_array_equal(merged.weight_sum_rest, whole.weight_sum_rest)
    for name in OutputNorms.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(merged.outputs, name), getattr(whole.outputs, name))
    assert (merged.n_tokens, merged.corpora) == (whole.n_tokens, whole.corpora)
