"""The C library in a bare llama.cpp program: profiles by layer, masks from files, what is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from support.architectures import ARCHITECTURES
from support.bare_host import BareHost, CProfiler
from support.masks import TOLERANCE, unused_experts
from support.random_models import write_random_model

import coe_native as coe

ModelFile = Callable[[str, str], Path]


@pytest.mark.parametrize("n_ubatch", [128, 32])
def test_layers_with_fewer_rows_count_fewer_tokens(
    model_file: ModelFile, documents: list[list[int]], tmp_path: Path, n_ubatch: int
) -> None:
    """With logits for the last token only, the last layer sees one token, and says so; those before it count like
    Python. A profile of the whole text completes it."""
    path = model_file("qwen3moe", "F32")
    tokens = documents[1][:100]
    with coe.Model(path, n_ctx=128, n_batch=n_ubatch, n_threads=1) as model:
        expected = coe.profile(model, [tokens], stats="routing")
    profiler = CProfiler(path)
    host = BareHost(path, profiler.callback, profiler.pointer, n_ubatch=n_ubatch)
    host.run(tokens, all_logits=False)
    host.close()
    profile = coe.RoutingProfile.load(profiler.save(tmp_path / "c.gguf", "chat"))
    profiler.close()
    assert profile.layer_tokens == (100, 100, 1)
    assert not profile.is_whole
    assert profile.n_tokens == 100
    np.testing.assert_array_equal(profile.histograms[:2], expected.histograms[:2])
    np.testing.assert_allclose(profile.weight_sum[:2], expected.weight_sum[:2], rtol=1e-6)
    assert profile.histograms[2].sum() == 4
    assert [(record.name, record.tokens) for record in profile.corpora] == [("chat", 100)]
    profile.save(tmp_path / "python.gguf")
    assert (tmp_path / "python.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()
    # Each layer is scored by its own tokens: of its weights, which add up to 1 for a token, all are given out.
    np.testing.assert_allclose(coe.score(profile).sum(axis=1), [1, 1, 1], rtol=1e-5)
    completed = profile + expected
    assert completed.layer_tokens == (200, 200, 101)
    np.testing.assert_array_equal(completed.histograms, profile.histograms + expected.histograms)


def test_contexts_add_up(model_file: ModelFile, documents: list[list[int]], tmp_path: Path) -> None:
    path = model_file("gpt-oss", "F32")
    profiler = CProfiler(path)
    host = BareHost(path, profiler.callback, profiler.pointer)
    library = profiler.library
    host.run(documents[0])
    first = library.coe_profiler_snapshot(profiler.pointer)
    host.run(documents[3])
    both = coe.RoutingProfile.load(profiler.save(tmp_path / "both.gguf", "text"))
    assert library.coe_profiler_reset(profiler.pointer) == 0
    host.run(documents[3])
    second = library.coe_profiler_snapshot(profiler.pointer)
    host.close()
    profiler.close()
    assert library.coe_profile_merge(first, second) == 0
    assert library.coe_profile_save(first, str(tmp_path / "sum.gguf").encode(), b"text") == 0
    for profile in (first, second):
        library.coe_profile_free(profile)
    merged = coe.RoutingProfile.load(tmp_path / "sum.gguf")
    assert merged.n_tokens == len(documents[0]) + len(documents[3])
    np.testing.assert_array_equal(merged.histograms, both.histograms)
    np.testing.assert_array_equal(merged.weight_sum, both.weight_sum)


def test_a_mask_file_is_applied(
    family: str, model_file: ModelFile, documents: list[list[int]], tmp_path: Path
) -> None:
    """What the host computes is what the pruned file computes; and the counts see kept experts only."""
    path = model_file(family, "F32")
    tokens = documents[4]
    mask = unused_experts(coe.profile(path, documents, n_ctx=128, n_threads=1), 8)
    mask.save(tmp_path / "mask.json")
    coe.prune(path, mask, tmp_path / "pruned.gguf")
    profiler = CProfiler(path)
    library = profiler.library
    host = BareHost(path, profiler.callback, profiler.pointer)
    host.run(tokens)
    whole = host.last_logits()
    assert library.coe_profiler_load_mask(profiler.pointer, str(tmp_path / "mask.json").encode()) == 0, (
        profiler.error
    )
    assert library.coe_profiler_reset(profiler.pointer) == 0
    host.run(tokens)
    masked = host.last_logits()
    profile = coe.RoutingProfile.load(profiler.save(tmp_path / "masked.gguf", "text"))
    for index, block in enumerate(profile.layers):
        assert set(np.flatnonzero(profile.counts[index])) <= set(mask.kept[block])
    applications = (ctypes.c_uint64 * len(profile.layers))()
    assert library.coe_profiler_mask_applications(profiler.pointer, applications) == 0
    assert all(n_times >= 1 for n_times in applications)
    assert library.coe_profiler_clear_mask(profiler.pointer) == 0
    host.run(tokens)
    np.testing.assert_array_equal(host.last_logits(), whole)
    host.close()
    profiler.close()
    pruned_host = BareHost(tmp_path / "pruned.gguf", llama_cpp.ggml_backend_sched_eval_callback(lambda *_: False))
    pruned_host.run(tokens)
    pruned = pruned_host.last_logits()
    pruned_host.close()
    scale = np.abs(whole).max()
    assert np.abs(pruned - masked).max() <= TOLERANCE.get(family, 1e-5) * scale
    assert np.abs(whole - masked).max() > 1e-2 * scale


def test_a_mask_of_another_model_is_refused(
    model_file: ModelFile, documents: list[list[int]], tmp_path: Path
) -> None:
    mask = unused_experts(coe.profile(model_file("olmoe", "F32"), documents, n_ctx=128, n_threads=1), 8)
    mask.save(tmp_path / "mask.json")
    profiler = CProfiler(model_file("qwen3moe", "F32"))
    for path, message in (
        (tmp_path / "mask.json", "model"),
        (model_file("olmoe", "F32"), "mask"),
        (tmp_path, ""),
    ):
        assert profiler.library.coe_profiler_load_mask(profiler.pointer, str(path).encode()) == 1
        assert profiler.error.startswith(f"{path}: ")
        assert message in profiler.error
        assert "\n" not in profiler.error
    profiler.close()


def test_masks_are_refused_where_python_refuses_them(tmp_path: Path) -> None:
    """Every architecture, with all numbers of experts that it might be cut to, as many from each group."""
    n_refused = 0
    for name in ARCHITECTURES:
        path = tmp_path / "model.gguf"
        write_random_model(path, name)
        moe = coe.MoeModel(path)
        profiler = CProfiler(path)
        for keep in range(moe.router_shape.n_groups, moe.n_experts + 1, moe.router_shape.n_groups):
            scores = np.zeros(moe.n_experts)
            kept = moe.router_shape.best(scores, keep) * len(moe.blocks)
            array = (ctypes.c_int32 * len(kept))(*kept)
            status = profiler.library.coe_profiler_mask(profiler.pointer, array, keep)
            assert (status == 0) == (keep in moe.possible_keeps), (name, keep, profiler.error)
            n_refused += status != 0
        profiler.close()
    assert n_refused > len(ARCHITECTURES)


def test_split_models_are_opened_and_other_files_refused(model_file: ModelFile, tmp_path: Path) -> None:
    path = model_file("qwen3moe", "F32")
    with coe.Model(path, n_ctx=32, n_batch=32, n_threads=1) as model:
        everything = coe.build_mask(coe.profile(model, [[1, 2, 3]]), 16)
    parts = tmp_path / "parts.gguf"
    coe.prune(path, everything, parts, split_max_bytes=200_000)
    first, second, *_ = sorted(tmp_path.glob("parts-*"))
    profiler = CProfiler(first)
    profile = coe.RoutingProfile.load(profiler.save(tmp_path / "empty.gguf", ""))
    assert profile.fingerprint == coe.MoeModel(first).fingerprint == coe.MoeModel(path).fingerprint
    library = profiler.library
    profiler.close()
    second.write_bytes(first.read_bytes())
    (tmp_path / "text.gguf").write_text("some text")
    for wrong, message in (
        (second, "first"),
        (first, "2 of"),
        (tmp_path / "text.gguf", "text.gguf: "),
        (tmp_path / "empty.gguf", "experts"),
        (tmp_path / "missing.gguf", ""),
    ):
        assert library.coe_profiler_open(str(wrong).encode()) is None
        error = library.coe_last_error().decode()
        assert message in error
        assert "\n" not in error
