"""Importance matrices: llama-imatrix's on the same tokens, and those of specialists.

test_architectures.py holds the sums of every architecture against an independent capture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from support.command_line import ok, refuse, report
from support.masks import unused_experts

import coe_native as coe
from coe_native.corpus.in_memory import corpus_of
from coe_native.profiling.imatrix import InputWatcher
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]

REFERENCE = Path(__file__).parents[1] / "data/demo_imatrix.npz"
"""What llama-imatrix of the pinned release writes for `reference_text` and the demo's model, on the CPU:
``llama-imatrix -m demo-Q8_0.gguf -f text.txt -c 512 -b 512 --no-ppl --no-escape``. The counts of all tensors, and
the sums of the first and the last block, without experts."""


def reference_text() -> str:
    lines = (demo.DATA / "python.profile.jsonl").read_text(encoding="utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines)[:8000]


def test_it_is_that_of_llama_imatrix() -> None:
    """Its chunks go on where the one before ended, and BOS takes the place of their first token.

    Another CPU rounds otherwise, and near-ties of routers move. On one CPU, all counts are equal, and sums to
    1e-4: see docs/guides/quantize.md."""
    reference = np.load(REFERENCE)
    with coe.Model(demo.MODEL, n_ctx=512, n_threads=2) as model:
        tokens = model.tokenize(reference_text())
        windows = [tokens[start : start + 512].copy() for start in range(0, len(tokens) - 511, 512)]
        for window in windows:
            window[0] = model.text.bos_token
        found = coe.compute_imatrix(model, windows, min_tokens=0)
    assert {f"{name}.counts" for name in found.entries} == {key for key in reference if key.endswith(".counts")}
    for name, entry in found.entries.items():
        counts = reference[f"{name}.counts"]
        assert counts.sum() == entry.counts.sum()
        assert np.abs(counts - entry.counts).sum() <= 0.005 * counts.sum()
    for key in (key for key in reference if key.endswith(".in_sum2") and "exps" not in key):
        entry = found.entries[key.removesuffix(".in_sum2")]
        np.testing.assert_allclose(entry.sums.ravel(), reference[key].ravel(), rtol=5e-3, err_msg=key)


def test_a_run_that_profiles_gives_both(model_file: ModelFile, documents: list[list[int]]) -> None:
    path = model_file("qwen3moe", "Q8_0")
    with coe.Model(path, n_ctx=128, n_batch=64, n_sequences=16, n_threads=1) as model:
        alone = coe.compute_imatrix(model, documents)
        profile = coe.profile(model, documents, stats="contribution")
        inputs = InputWatcher()
        both = coe.profile_corpora(model, [corpus_of(documents)], stats="contribution", inputs=inputs)
    assert (both.histograms == profile.histograms).all()
    np.testing.assert_array_equal(both.weight_sum, profile.weight_sum)
    assert both.outputs is not None
    assert profile.outputs is not None
    np.testing.assert_array_equal(both.outputs.norm_sum, profile.outputs.norm_sum)
    for name, entry in inputs.imatrix.entries.items():
        np.testing.assert_array_equal(entry.sums, alone.entries[name].sums)
    down = inputs.imatrix.entries["blk.1.ffn_down_exps.weight"]
    seen = both.counts[1] >= 16
    np.testing.assert_array_equal(down.counts[seen], both.counts[1][seen])


def test_files_are_read_as_they_were_written(
    tmp_path: Path, model_file: ModelFile, documents: list[list[int]]
) -> None:
    with coe.Model(model_file("deepseek2", "F32"), n_ctx=128, n_threads=1) as model:
        made = coe.compute_imatrix(model, documents)
    made.save(tmp_path / "im.gguf")
    read = coe.Imatrix.load(tmp_path / "im.gguf")
    assert (read.datasets, read.n_chunks, read.chunk_size) == (made.datasets, made.n_chunks, 128)
    assert set(read.entries) == set(made.entries)
    for name, entry in made.entries.items():
        np.testing.assert_array_equal(read.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(read.entries[name].counts, entry.counts)
    names = [tensor.name for tensor in GGUFReader(tmp_path / "im.gguf").tensors]
    assert names[::2] == sorted(f"{name}.in_sum2" for name in made.entries)
    made.save(tmp_path / "im.gguf")
    with pytest.raises(coe.InputError, match="exists"):
        made.save(tmp_path / "im.gguf", force=False)


@pytest.mark.parametrize("family", ["gemma4", "deepseek2", "gpt-oss"])
def test_the_quantiser_takes_it_also_for_a_specialist(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]], family: str
) -> None:
    parent = model_file(family, "F32")
    mask = unused_experts(profile_of(family), 8)
    with coe.Model(parent, n_ctx=128, n_threads=1) as model:
        coe.compute_imatrix(model, documents).save(tmp_path / "parent.im.gguf")
        model.apply(mask)
        coe.compute_imatrix(model, documents).save(tmp_path / "masked.im.gguf")
    pruned = coe.prune(parent, mask, tmp_path / "pruned.gguf")
    options = coe.QuantizeOptions("IQ4_XS")
    coe.quantize(pruned, options, tmp_path / "q.gguf", imatrix=tmp_path / "masked.im.gguf")
    coe.quantize(parent, options, tmp_path / "p.gguf", imatrix=tmp_path / "parent.im.gguf")
    for model, imatrix in ((pruned, "parent.im.gguf"), (parent, "masked.im.gguf")):
        with pytest.raises(coe.InputError, match="of another model or mask"):
            coe.quantize(model, options, tmp_path / "no.gguf", imatrix=tmp_path / imatrix)
    assert not (tmp_path / "no.gguf").exists()


counts_of_experts = st.lists(st.integers(0, 40), min_size=2, max_size=8)


@settings(deadline=None)
@given(counts=counts_of_experts, min_tokens=st.integers(0, 30), seed=st.integers(0, 99))
def test_experts_with_few_tokens_get_the_mean(counts: list[int], min_tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sums = (random.random((len(counts), 3)) * np.array(counts)[:, None]).astype(np.float32)
    entry = coe.ImatrixEntry(sums, np.array(counts, np.float32))
    dense = coe.ImatrixEntry(sums[:1], entry.counts[:1])
    made, few = coe.Imatrix({"e": entry, "d": dense}, (), 1, 1).with_means(min_tokens)
    assert made.entries["d"] is dense
    lacking = [expert for expert, count in enumerate(counts) if count < min_tokens]
    if not lacking or not any(counts):
        assert (few, made.entries["e"]) == ({}, entry)
        return
    assert few == {"e": tuple(lacking)}
    mean = sums.sum(axis=0) / sum(counts)
    for expert, weights in enumerate(made.entries["e"].weights):
        expected = mean if expert in lacking else sums[expert] / counts[expert]
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert (
        made.entries["e"].counts >= np.maximum(np.array(counts) * 1.0, np.isin(range(len(counts)), lacking))
    ).all()


def test_the_command_writes_it_and_says_what_lacks_tokens(tmp_path: Path) -> None:
    text, out, shared = tmp_path / "text.txt", tmp_path / "im.gguf", tmp_path / "shared.gguf"
    text.write_text(reference_text(), encoding="utf-8")
    shown = report("imatrix", demo.MODEL, "-c", text, "-o", out)
    assert shown["few_tokens"] > 0
    assert shown["tensors"] == len(coe.Imatrix.load(out).entries)
    ok("profile", demo.MODEL, "-c", text, "-o", tmp_path / "p.gguf", "--imatrix", shared)
    assert shared.read_bytes() == out.read_bytes()
    assert (
        "got the mean of their layer"
        in ok("imatrix", demo.MODEL, "-c", text, "-o", tmp_path / "b.gguf", "--min-tokens", 1000).err
    )
    ok("mask", tmp_path / "p.gguf", "--keep", 16, "-o", tmp_path / "m.json")
    masked = report("imatrix", demo.MODEL, "-c", text, "-o", tmp_path / "m.gguf", "--mask", tmp_path / "m.json")
    assert masked["mask"] == coe.ExpertMask.load(tmp_path / "m.json").digest
    assert coe.Imatrix.load(tmp_path / "m.gguf").entries["blk.0.ffn_down_exps.weight"].counts.shape == (16,)


def test_one_of_another_mask_or_shape_is_refused(
    tmp_path: Path, model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    parent = model_file("qwen3moe", "F32")
    profile = profile_of("qwen3moe")
    masks = [unused_experts(profile, 8), coe.build_mask(profile, 8)]
    with coe.Model(parent, n_ctx=128, n_threads=1) as model:
        whole = coe.compute_imatrix(model, documents)
        model.apply(masks[0])
        of_first = coe.compute_imatrix(model, documents)
    assert (whole.mask, of_first.mask) == ("", masks[0].digest)
    of_first.save(tmp_path / "first.gguf")
    assert coe.Imatrix.load(tmp_path / "first.gguf").mask == masks[0].digest
    options, out = coe.QuantizeOptions("Q4_0"), tmp_path / "out.gguf"
    with pytest.raises(coe.InputError, match="another mask"):
        coe.prune_and_quantize(parent, masks[1], options, out, imatrix=tmp_path / "first.gguf")
    other = coe.prune(parent, masks[1], tmp_path / "other.gguf")
    with pytest.raises(coe.InputError, match="another mask"):
        coe.quantize(other, options, out, imatrix=tmp_path / "first.gguf")
    name = "blk.1.ffn_down_exps.weight"
    entry = whole.entries[name]
    turned = coe.ImatrixEntry(entry.sums.T.copy(), np.ones(entry.sums.shape[1], np.float32))
    for wrong in (coe.ImatrixEntry(entry.sums[:12], entry.counts[:12]), turned):
        coe.Imatrix({**whole.entries, name: wrong}, (), 1, 1).save(tmp_path / "damaged.gguf")
        with pytest.raises(coe.InputError, match=r"damaged\.gguf: has .* values for blk\.1\.ffn_down_exps"):
            coe.prune_and_quantize(parent, masks[0], options, out, imatrix=tmp_path / "damaged.gguf")
    assert not out.exists()


def test_the_command_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "im.gguf"
    text.write_text("words " * 50, encoding="utf-8")
    out.write_bytes(b"mine")
    command = ("imatrix", demo.MODEL, "-c", text)
    assert "exists" in refuse(tmp_path, *command, "-o", out).err
    assert "input of this command" in refuse(tmp_path, *command, "-o", text, "--force").err
    profile = ("profile", demo.MODEL, "-c", text, "-o", tmp_path / "p.gguf", "--imatrix")
    assert "cannot be resumed" in refuse(tmp_path, *profile, tmp_path / "i.gguf", "--resume").err
    for same in ("p.gguf", "sub/../p.gguf", "p.gguf.checkpoint"):
        assert "another name" in refuse(tmp_path, *profile, tmp_path / same).err
    assert out.read_bytes() == b"mine"
