"""What fits into memory: against what llama.cpp takes when it does load, and against published figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape

import coe_native as coe
from coe_native._native import core
from coe_native.surgery.fit import fit, memory_of

ModelFile = Callable[[str, str], Path]
PLACEMENT = coe.Placement(n_ctx=1024, n_batch=64)


@pytest.mark.parametrize(
    ("family", "quantization"), [("qwen3moe", "Q8_0"), ("gemma4", "F32"), ("deepseek2", "Q8_0")]
)
def test_memory_is_what_a_loaded_specialist_takes(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: Callable[..., coe.RoutingProfile],
    family: str,
    quantization: str,
) -> None:
    path = model_file(family, quantization)
    moe = coe.MoeModel(path)
    for keep in (8, moe.n_experts):
        out = coe.prune(path, coe.build_mask(profile_of(family, quantization), keep), tmp_path / f"{keep}.gguf")
        with coe.Model(out, n_ctx=1024, n_batch=64, n_threads=1) as model:
            uses = model.session.memory()
        foretold = memory_of(moe, keep, PLACEMENT)
        assert foretold.context == sum(use["context"] for use in uses) > 0
        assert foretold.compute == sum(use["compute"] for use in uses) > 0
        # A mapped file counts with what lies between its tensors.
        assert foretold.weights == pytest.approx(sum(use["weights"] for use in uses), rel=0.05)
        assert foretold.weights == pytest.approx(out.stat().st_size, rel=0.1)


@pytest.mark.parametrize("family", ["qwen3moe", "deepseek2"])
def test_fit_finds_the_largest_keep(model_file: ModelFile, family: str) -> None:
    moe = coe.MoeModel(model_file(family, "F32"))
    takes = {keep: memory_of(moe, keep, PLACEMENT).total for keep in moe.possible_keeps}
    assert list(takes.values()) == sorted(takes.values())
    for keep, n_bytes in takes.items():
        found = fit(moe, n_bytes, PLACEMENT)
        assert (found.keep, found.memory.total) == (keep, n_bytes)
        if keep > min(takes):
            assert fit(moe, n_bytes - 1, PLACEMENT).keep < keep
    assert fit(moe, 1 << 40, PLACEMENT).keep == moe.n_experts
    with pytest.raises(coe.InputError, match=rf"\b{-(-min(takes.values()) >> 20)} MiB"):
        fit(moe, min(takes.values()) - 1, PLACEMENT)


def test_fit_refuses_a_model_that_cannot_be_cut(model_file: ModelFile) -> None:
    moe = coe.MoeModel(model_file("grovemoe", "F32"))
    with pytest.raises(coe.InputError, match="groups"):
        fit(moe, 1 << 20, PLACEMENT)


def test_memory_of_gemma_4_26b_is_as_published(tmp_path: Path) -> None:
    """Gemma 4 26B-A4B in llama.cpp's Q4_K_M mix, a header alone. Published, in GiB: half the experts save 7.1, and
    48k more tokens of context take 1.1, runtime included."""
    moe = coe.MoeModel(_gemma4_26b(tmp_path / "26b.gguf"))
    assert moe.n_bytes / 1e9 == pytest.approx(16.79, abs=0.1)
    all_at_16k, half_at_16k, half_at_64k = (
        memory_of(moe, keep, coe.Placement(n_ctx=n_ctx))
        for keep, n_ctx in ((128, 16384), (64, 16384), (64, 65536))
    )
    gib = 2**30
    assert (all_at_16k.total - half_at_16k.total) / gib == pytest.approx(7.1, abs=0.1)
    assert (half_at_64k.total - half_at_16k.total) / gib == pytest.approx(1.1, abs=0.2)
    # Beside the weights, the published 19.4 and 12.3 hold 1.1 of vision projector, and what the runtime takes.
    assert 19.4 - 1.1 - 2 < all_at_16k.total / gib < 19.4 - 1.1
    assert 12.3 - 1.1 - 2 < half_at_16k.total / gib < 12.3 - 1.1
    found = fit(moe, 12 * gib, coe.Placement(n_ctx=16384))
    assert 64 < found.keep < 128
    assert found.memory.total <= 12 * gib < memory_of(moe, found.keep + 1, coe.Placement(n_ctx=16384)).total


def _gemma4_26b(path: Path) -> Path:
    """Every tensor's shape and type, and nothing in them."""
    embd, n_layers, n_experts, ff_expert, ff = 2816, 30, 128, 704, 2112
    kind = GGMLQuantizationType
    full = [layer % 6 == 5 for layer in range(n_layers)]
    writer = GGUFWriter(path, "gemma4")
    writer.add_string("tokenizer.ggml.model", "none")
    writer.add_vocab_size(262144)
    writer.add_block_count(n_layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(embd)
    writer.add_feed_forward_length(ff)
    writer.add_expert_feed_forward_length(ff_expert)
    writer.add_expert_count(n_experts)
    writer.add_expert_used_count(8)
    writer.add_head_count(16)
    writer.add_head_count_kv([2 if is_full else 8 for is_full in full])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(1024)
    writer.add_array("gemma4.attention.sliding_window_pattern", [not is_full for is_full in full])
    writer.add_uint32("gemma4.attention.shared_kv_layers", 0)
    writer.add_uint32("gemma4.embedding_length_per_layer_input", 0)
    for part in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        writer.add_uint32(f"gemma4.{part}", 512)
        writer.add_uint32(f"gemma4.{part}_swa", 256)
    writer.add_float32("gemma4.rope.freq_base_swa", 10000.0)

    def add(name: str, shape: tuple[int, ...], type_: GGMLQuantizationType = kind.F32) -> None:
        in_bytes = shape if type_ == kind.F32 else quant_shape_to_byte_shape(shape, type_)
        dtype = np.dtype(np.float32 if type_ == kind.F32 else np.uint8)
        writer.add_tensor_info(name, in_bytes, dtype, int(np.prod(in_bytes)) * dtype.itemsize, raw_dtype=type_)

    add("token_embd.weight", (262144, embd), kind.Q6_K)
    add("output_norm.weight", (embd,))
    add("rope_freqs.weight", (256,))
    for layer, is_full in enumerate(full):
        head, n_kv = (512, 2) if is_full else (256, 8)
        # llama.cpp gives the first and last eighth of the layers, and every third between, more bits.
        better = layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
        blk = f"blk.{layer}"
        add(f"{blk}.attn_q.weight", (16 * head, embd), kind.Q4_K)
        add(f"{blk}.attn_k.weight", (n_kv * head, embd), kind.Q4_K)
        if not is_full:
            add(f"{blk}.attn_v.weight", (n_kv * head, embd), kind.Q6_K if better else kind.Q4_K)
        add(f"{blk}.attn_output.weight", (embd, 16 * head), kind.Q4_K)
        add(f"{blk}.ffn_gate.weight", (ff, embd), kind.Q4_K)
        add(f"{blk}.ffn_up.weight", (ff, embd), kind.Q4_K)
        add(f"{blk}.ffn_down.weight", (embd, ff), kind.Q8_0 if better else kind.Q5_0)
        add(f"{blk}.ffn_gate_inp.weight", (n_experts, embd))
        add(f"{blk}.ffn_gate_inp.scale", (embd,))
        add(f"{blk}.ffn_gate_up_exps.weight", (n_experts, 2 * ff_expert, embd), kind.Q4_K)
        add(f"{blk}.ffn_down_exps.weight", (n_experts, embd, ff_expert), kind.Q8_0 if better else kind.Q5_0)
        add(f"{blk}.ffn_down_exps.scale", (n_experts,))
        add(f"{blk}.layer_output_scale.weight", (1,))
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_ffw_norm_1"):
            add(f"{blk}.{norm}.weight", (embd,))
        for norm in ("post_ffw_norm_2", "pre_ffw_norm_2"):
            add(f"{blk}.{norm}.weight", (embd,))
        for norm in ("attn_q_norm", "attn_k_norm"):
            add(f"{blk}.{norm}.weight", (head,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header = core.GgufFile(b"", path.read_bytes(), 1 << 40).header
    with path.open("r+b") as file:
        file.truncate(max(tensor.offset + tensor.n_bytes for tensor in header.tensors))
    return path
