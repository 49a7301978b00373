"""Every mixture-of-experts architecture that llama.cpp runs: one row, the same demands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import MODEL_ARCH_NAMES, MODEL_TENSOR, MODEL_TENSORS, GGUFReader
from numpy.typing import NDArray
from support.architectures import ARCHITECTURES, COVERED, NOT_COVERED
from support.bad_files import PIECES, byte_tokenizer
from support.bare_host import BareHost, CProfiler
from support.cpp_build import succeed
from support.distributions import divergence, log_softmax
from support.masks import TOLERANCE, unused_experts
from support.random_models import moe_layers, write_random_model
from support.slow_capture import SlowCapture, SlowInputs

import coe_native as coe
from coe_native.cli.commands.inspect import command as inspect

KEEP = 8


class Row:
    """A random model of one row, its profile, and the mask that changes its output most."""

    def __init__(self, name: str, directory: Path, documents: list[list[int]]) -> None:
        self.name, self.directory, self.documents = name, directory, documents
        self.spec = ARCHITECTURES[name]
        self.path = directory / "model.gguf"
        write_random_model(self.path, name)
        with coe.Model(self.path, n_ctx=128, n_batch=128, n_threads=2) as model:
            self.profile = coe.profile(model, documents, stats="contribution")
        self.mask = unused_experts(self.profile, KEEP)

    @property
    def cuttable(self) -> bool:
        return not self.spec.refused


@pytest.fixture(scope="module", params=ARCHITECTURES)
def row(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> Iterator[Row]:
    directory = tmp_path_factory.mktemp("row")
    made = Row(request.param, directory, documents)
    yield made
    for path in directory.iterdir():
        path.unlink()


def outputs(path: Path, tokens: list[int], mask: coe.ExpertMask | None = None) -> NDArray[np.float32]:
    with coe.Model(path, n_ctx=128, n_batch=128, n_threads=1, f32_kv=True) as model:
        if mask is not None:
            model.apply(mask)
        return model.outputs(tokens)


def test_counts_equal_an_independent_capture(row: Row) -> None:
    """Every token counts in every layer, at every rank; each choice and weight is the slow capture's."""
    profile = row.profile
    assert profile.layers == tuple(moe_layers(row.name))
    layer_top_k = [layer.top_k for layer in coe.MoeModel(row.path).routed_layers]
    assert profile.histograms.sum(axis=(1, 2)).tolist() == [profile.n_tokens * k for k in layer_top_k]
    slow = SlowCapture(row.path, 128)
    try:
        slow.run(row.documents, 128)
    finally:
        slow.close()
    assert profile.outputs is not None
    for index, block in enumerate(profile.layers):
        histogram, weight_sum = slow.counts(block, profile.n_experts)
        norm_sum, weighted_norm_sum = slow.output_norms(block, profile.n_experts)
        k = layer_top_k[index]
        np.testing.assert_array_equal(profile.histograms[index, :, :k], histogram)
        np.testing.assert_allclose(profile.weight_sum[index, :, :k], weight_sum, rtol=1e-6)
        np.testing.assert_allclose(profile.outputs.norm_sum[index], norm_sum, rtol=1e-5)
        np.testing.assert_allclose(profile.outputs.weighted_norm_sum[index], weighted_norm_sum, rtol=1e-5)
        assert np.array_equal(norm_sum, weighted_norm_sum) == (row.name == "llama4")


def test_importance_matrices_equal_an_independent_capture(row: Row) -> None:
    slow = SlowInputs(row.path, 128)
    try:
        slow.run(row.documents, 128)
    finally:
        slow.close()
    with coe.Model(row.path, n_ctx=128, n_batch=128, n_threads=2) as model:
        found = coe.compute_imatrix(model, row.documents, min_tokens=0)
    assert set(found.entries) == set(slow.sums)
    assert {
        t.name for layer in coe.MoeModel(row.path).routed_layers for t in layer.tensors if len(t.shape) > 2
    } <= (set(found.entries))
    for name, entry in found.entries.items():
        np.testing.assert_array_equal(entry.counts, slow.counts[name], name)
        np.testing.assert_allclose(entry.sums, slow.sums[name], rtol=1e-5, err_msg=name)


def test_the_texts_of_tokens_change_no_graph(row: Row) -> None:
    """`verify` leaves them out when it compares the parent's graph."""
    path = row.directory / "with-texts.gguf"
    write_random_model(path, row.name, n_vocab=len(PIECES), extra_metadata=byte_tokenizer())
    found = []
    for token_texts in (True, False):
        options = coe.ModelOptions(n_ctx=8, n_batch=8, n_threads=1, mtp=True, token_texts=token_texts)
        with coe.Model(path, options) as model, model.recording() as operations:
            outputs = model.outputs([1, 2, 3])
            assert model.session.has_tokenizer == token_texts
        found.append((operations, outputs.tobytes()))
    assert len(found[0][0]) > 10
    assert found[0] == found[1]


def test_the_masked_parents_importance_matrix_is_that_of_the_specialist(row: Row) -> None:
    if not row.cuttable:
        pytest.skip("cannot be cut, see above")
    out = coe.prune(row.path, row.mask, row.directory / "of-mask.gguf")
    with coe.Model(row.path, n_ctx=128, n_batch=128, n_threads=1, f32_kv=True) as model:
        model.apply(row.mask)
        masked = coe.compute_imatrix(model, row.documents)
    with coe.Model(out, n_ctx=128, n_batch=128, n_threads=1, f32_kv=True) as model:
        pruned = coe.compute_imatrix(model, row.documents)
    assert set(masked.entries) == set(pruned.entries)
    for name, entry in pruned.entries.items():
        assert masked.entries[name].sums.shape == entry.sums.shape
        moved = np.abs(masked.entries[name].counts - entry.counts).sum()
        assert moved <= 0.01 * entry.counts.sum(), name  # near-ties
        if moved == 0:
            scale = entry.sums.max()
            assert np.abs(masked.entries[name].sums - entry.sums).max() <= 1e-2 * scale, name


def test_a_c_host_writes_the_profile_that_python_writes(row: Row) -> None:
    """By the byte, but for the corpus's name: counts, sums, norms, fingerprint, sizes, groups, names."""
    profiler = CProfiler(row.path, norms=True)
    host = BareHost(row.path, profiler.callback, profiler.pointer)
    for document in row.documents:
        for start in range(0, len(document), 128):
            host.run(document[start : start + 128])
    host.close()
    written = profiler.save(row.directory / "c.profile.gguf", "text")
    profiler.close()
    profile = coe.RoutingProfile.load(written)
    assert profile.is_whole
    np.testing.assert_array_equal(profile.histograms, row.profile.histograms)
    np.testing.assert_allclose(profile.weight_sum, row.profile.weight_sum, rtol=1e-6)
    for name in ("architecture", "model_name", "fingerprint", "layers", "n_tokens", "router_shape"):
        assert getattr(profile, name) == getattr(row.profile, name), name
    assert profile.outputs is not None
    assert row.profile.outputs is not None
    for name in ("norm_sum", "weighted_norm_sum"):
        np.testing.assert_allclose(getattr(profile.outputs, name), getattr(row.profile.outputs, name), rtol=1e-6)
    profile.save(row.directory / "python.profile.gguf")
    assert (row.directory / "python.profile.gguf").read_bytes() == written.read_bytes()


def test_a_warm_up_under_a_mask_changes_nothing(row: Row) -> None:
    """Neither what the context computes afterwards, though only its cells are cleared, nor the counts."""
    mask = None
    if row.cuttable:
        mask = row.directory / "mask.json"
        row.mask.save(mask)
    profiles, logits = [], []
    for warms_up in (False, True):
        profiler = CProfiler(row.path)
        if mask is not None:
            profiler.mask(mask)
        host = BareHost(row.path, profiler.callback, profiler.pointer)
        if warms_up:
            host.warm_up()
            profiler.reset()
        host.run(row.documents[0])
        logits.append(host.last_logits())
        host.close()
        profiles.append(coe.RoutingProfile.load(profiler.save(row.directory / "warm.profile.gguf", "text")))
        profiler.close()
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(profiles[1].histograms, profiles[0].histograms)
    assert profiles[1].n_tokens == len(row.documents[0])


@pytest.mark.cpp
def test_counts_do_not_depend_on_the_order_of_nodes(row: Row, core_build: Path) -> None:
    """In Metal's order, in Vulkan's and in any other, cut into splits, with norms, masks and an early end:
    tests/cpp/reordered_model.cpp runs the graphs again on the CPU."""
    output = succeed(row.directory, str(core_build / "coe_reordered_model"), str(row.path))
    assert output.endswith("equal\n")


def test_sharing_and_cutting_batches_moves_near_ties_only(row: Row) -> None:
    """Also where a window must stay whole, and where state goes on from batch to batch."""
    with coe.Model(row.path, n_ctx=128, n_batch=64, n_sequences=16, n_threads=1) as model:
        other = coe.profile(model, row.documents)
    moved = np.abs(other.histograms - row.profile.histograms).sum() / 2
    assert moved <= 0.01 * row.profile.histograms.sum()


def test_sequences_side_by_side_do_not_see_each_other(row: Row) -> None:
    """As in generation: prompts are read one by one, then each step has a token of each; one ends, one begins."""
    with coe.Model(row.path, n_ctx=128, n_batch=32, n_sequences=3, n_threads=1, f32_kv=True) as model:
        if not model.predicts:
            return
        if row.cuttable:
            model.apply(row.mask)
        numbers = np.random.default_rng(3)
        texts = [numbers.integers(0, 256, length).tolist() for length in (21, 9, 40, 17)]
        alone = [model.logits(text) for text in texts]
        model.session.reset()
        beside: list[list[NDArray[np.float32]]] = [[] for _ in texts]
        held: dict[int, int] = {}  # the text of each sequence

        def read(text: int, sequence: int) -> None:
            held[sequence] = text
            prompt = np.array(texts[text][:5], np.int32)
            model.extend(prompt, np.arange(5, dtype=np.int32), np.full(5, sequence, np.int32), 4)
            beside[text].append(model.session.logits(-1, 1)[0])

        for text in range(3):
            read(text, text)
        while held:
            for sequence, text in list(held.items()):
                if 4 + len(beside[text]) == len(texts[text]):
                    model.forget(sequence)
                    del held[sequence]
                    if text == 1:
                        read(3, sequence)
            if held:
                now = [
                    (texts[text][4 + len(beside[text])], 4 + len(beside[text]), sequence)
                    for sequence, text in held.items()
                ]
                model.extend(*(np.array(column, np.int32) for column in zip(*now, strict=True)))
                for index, text in enumerate(held.values()):
                    beside[text].append(model.session.logits(index, 1)[0])
    for whole, steps in zip(alone, beside, strict=True):
        assert len(steps) == len(whole) - 4
        apart = np.abs(whole[4:] - np.stack(steps)).max(axis=1) / np.abs(whole).max()
        assert np.median(apart) < 1e-4  # a near-tie of a router may move single tokens


def test_pruned_equals_live_masked(row: Row) -> None:
    if not row.cuttable:
        with pytest.raises(coe.InputError, match=row.spec.refused):
            coe.prune(row.path, row.mask, row.directory / "out.gguf")
        with pytest.raises(coe.InputError, match=row.spec.refused):
            outputs(row.path, row.documents[4], row.mask)
        assert not list(row.directory.glob("*out*"))
        return
    out = coe.prune(row.path, row.mask, row.directory / "out.gguf")
    whole = outputs(row.path, row.documents[4])
    masked = outputs(row.path, row.documents[4], row.mask)
    pruned = outputs(out, row.documents[4])
    scale = np.abs(whole).max()
    assert np.abs(pruned - masked).max() <= TOLERANCE.get(row.name, 1e-5) * scale
    assert np.abs(whole - masked).max() > 1e-2 * scale, "the mask must change the output, or equality says nothing"
    assert all(check.passed for check in coe.verify(out, row.path, row.mask))


def test_pruned_is_close_to_live_masked_when_quantised(row: Row) -> None:
    """llama.cpp rounds activations to 8 bits, so a last bit can grow: compare distributions, by what the mask
    changes. The F32 file's mask serves."""
    if not row.cuttable or row.spec.unquantised:
        pytest.skip(row.spec.unquantised or "cannot be cut, see above")
    parent = row.directory / "Q4_K_M.gguf"
    write_random_model(parent, row.name, quantization="Q4_K_M")
    out = coe.prune(parent, row.mask, row.directory / "Q4_K_M-out.gguf")
    whole, masked, pruned = (
        log_softmax(outputs(path, row.documents[4], mask))
        for path, mask in ((parent, None), (parent, row.mask), (out, None))
    )
    assert divergence(masked, pruned) < 0.01
    assert divergence(whole, pruned) > 20 * divergence(masked, pruned)


def test_inspect_describes_every_architecture(row: Row) -> None:
    run = CliRunner().invoke(inspect, [str(row.path), "--json", "--keep", str(KEEP)])
    if not row.cuttable:
        assert row.spec.refused in str(run.exception)
        run = CliRunner().invoke(inspect, [str(row.path), "--json"])
        assert row.spec.refused in json.loads(run.output)["obstacle"]
        return
    facts = json.loads(run.output)
    assert facts["moe_layers"] == moe_layers(row.name)
    assert facts["experts"] == 16
    assert facts["layer_top_k"] == row.profile.layer_top_k.tolist()
    assert facts["bytes"] == row.path.stat().st_size
    record = 2000  # bytes for what the output says of its mask
    out = coe.prune(row.path, row.mask, row.directory / "inspected.gguf")
    assert 0 < out.stat().st_size - facts["specialist"]["bytes"] < record


def test_zeroed_models_hold_zeros_where_the_mask_says(row: Row) -> None:
    out = coe.zero(row.path, row.mask, row.directory / "zero.gguf")
    assert all(check.passed for check in coe.verify(out, row.path, row.mask))
    parent = {tensor.name: tensor.data for tensor in GGUFReader(row.path).tensors}
    n_zeroed = 0
    for tensor in GGUFReader(out).tensors:
        expected = parent[tensor.name].copy()
        block = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else -1
        if block in row.mask.kept and tensor.name.split(".")[2] in EXPERTS and not tensor.name.endswith("scale"):
            expected[row.mask.dropped(block)] = 0
            n_zeroed += 1
        np.testing.assert_array_equal(tensor.data, expected)
    assert n_zeroed >= 2 * len(row.mask.kept)


EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps")


def test_every_architecture_with_experts_is_a_row_or_has_a_reason() -> None:
    """gguf lists the tensors of those architectures that it converts: one more with experts fails here."""
    with_experts = {
        MODEL_ARCH_NAMES[architecture]
        for architecture, tensors in MODEL_TENSORS.items()
        if MODEL_TENSOR.FFN_DOWN_EXP in tensors
    }
    assert with_experts <= COVERED | set(NOT_COVERED)
    assert not COVERED & set(NOT_COVERED)
