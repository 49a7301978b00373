"""Tiny mixture-of-experts GGUF files with random weights, for the tests.

Routing, profiling and pruning depend on an architecture's tensors and metadata and not on what a model
has learned, so a few megabytes of noise stand in for every model family that llama.cpp runs. The files
carry no tokenizer: feed them token ids below ``n_vocab``.

The noise is scaled so that a router has clear preferences which differ from token to token, and so that
the experts' output is a large part of the residual stream: a wrong choice of expert shows in the logits.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, GGUFWriter

PathLike: TypeAlias = "str | os.PathLike[str]"
Metadata: TypeAlias = "dict[str, Any]"
Tensors: TypeAlias = "dict[str, npt.NDArray[np.float32]]"

N_HEAD = 4
N_HEAD_KV = 2
SLIDING_WINDOW = 16  # shorter than the prompts of most tests, so that the windows matter
ROUTER_SPREAD = 2.0  # standard deviation of one token's router logits
SIGMOID_GATING = 2  # llama.cpp's number for it


@dataclass
class Draft:
    """A model in the making: the sizes that a family builds from, and what it has built so far."""

    n_layers: int
    n_experts: int
    top_k: int
    n_vocab: int
    n_embd: int
    n_ff_expert: int
    leading_dense: int
    random: np.random.Generator
    metadata: Metadata = field(default_factory=dict)  # keys without the architecture's prefix
    tensors: Tensors = field(default_factory=dict)

    @property
    def head_size(self) -> int:
        """Width of one head of plain attention."""
        return self.n_embd // N_HEAD

    @property
    def n_ff_shared(self) -> int:
        """Width of dense and shared FFNs: unlike an expert's, so that no code can mix them up unnoticed."""
        return 2 * self.n_ff_expert

    def normal(self, name: str, *shape: int, spread: float) -> None:
        """Add a tensor spread around zero, such as a bias; dimensions are in numpy's order, rows last."""
        self.tensors[name] = self.random.standard_normal(shape, dtype=np.float32) * np.float32(spread)

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Add a weight that maps inputs of unit size to outputs of size ``gain``."""
        self.normal(name, *shape, spread=gain * shape[-1] ** -0.5)

    def around(self, centre: float, size: int, *names: str, spread: float = 0.2) -> None:
        """Add vectors of multipliers, such as norms: varied enough that leaving one out would show."""
        for name in names:
            values = self.random.uniform(1 - spread, 1 + spread, size)
            self.tensors[name] = (centre * values).astype(np.float32)


class Family(NamedTuple):
    """How to draft one model family: its architecture's name in GGUF, and its metadata and tensors."""

    architecture: str
    build: Callable[[Draft], None]
    leading_dense: int = 0  # how many first layers have no experts


def _embeddings(draft: Draft, *, tied: bool = False) -> None:
    """Input and output ends and the metadata that every architecture reads.

    A tied model (Gemma) multiplies its embeddings by sqrt(n_embd) itself, the others want unit size. Tied
    embeddings are small, or each token would predict itself whatever the experts do; the output norm
    makes up for it, so that logits are about two in size either way.
    """
    draft.metadata |= {
        "context_length": 1024,
        "vocab_size": draft.n_vocab,
        "block_count": draft.n_layers,
        "embedding_length": draft.n_embd,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "expert_count": draft.n_experts,
        "expert_used_count": draft.top_k,
    }
    draft.matrix("token_embd.weight", draft.n_vocab, draft.n_embd, gain=0.5 if tied else draft.n_embd**0.5)
    draft.around(4.0 if tied else 1.0, draft.n_embd, "output_norm.weight")
    if not tied:
        draft.matrix("output.weight", draft.n_vocab, draft.n_embd, gain=2.0)


def _blocks(draft: Draft) -> Iterable[str]:
    return (f"blk.{layer}" for layer in range(draft.n_layers))


def _attention(draft: Draft, block: str, head_size: int, n_head_kv: int = N_HEAD_KV) -> None:
    draft.around(1.0, draft.n_embd, f"{block}.attn_norm.weight")
    draft.matrix(f"{block}.attn_q.weight", N_HEAD * head_size, draft.n_embd)
    draft.matrix(f"{block}.attn_k.weight", n_head_kv * head_size, draft.n_embd)
    draft.matrix(f"{block}.attn_v.weight", n_head_kv * head_size, draft.n_embd)
    draft.matrix(f"{block}.attn_output.weight", draft.n_embd, N_HEAD * head_size)


def _query_key_norms(draft: Draft, block: str, size: int, centre: float = 1.0) -> None:
    draft.around(centre, size, f"{block}.attn_q_norm.weight", f"{block}.attn_k_norm.weight")


def _dense_ffn(draft: Draft, block: str, suffix: str = "") -> None:
    width = draft.n_ff_shared
    draft.matrix(f"{block}.ffn_gate{suffix}.weight", width, draft.n_embd)
    draft.matrix(f"{block}.ffn_up{suffix}.weight", width, draft.n_embd)
    draft.matrix(f"{block}.ffn_down{suffix}.weight", draft.n_embd, width, gain=2.0)


def _experts(draft: Draft, block: str, *, input_size: float = 1.0, fused: bool = False) -> None:
    """A router for inputs of the given size, and experts whose down gain makes up for small products."""
    n_experts, width = draft.n_experts, draft.n_ff_expert
    draft.matrix(f"{block}.ffn_gate_inp.weight", n_experts, draft.n_embd, gain=ROUTER_SPREAD / input_size)
    if fused:
        draft.matrix(f"{block}.ffn_gate_up_exps.weight", n_experts, 2 * width, draft.n_embd)
    else:
        draft.matrix(f"{block}.ffn_gate_exps.weight", n_experts, width, draft.n_embd)
        draft.matrix(f"{block}.ffn_up_exps.weight", n_experts, width, draft.n_embd)
    draft.matrix(f"{block}.ffn_down_exps.weight", n_experts, draft.n_embd, width, gain=3.0)


def _plain_layer(draft: Draft, block: str, n_head_kv: int = N_HEAD_KV) -> None:
    _attention(draft, block, draft.head_size, n_head_kv)
    draft.around(1.0, draft.n_embd, f"{block}.ffn_norm.weight")
    _experts(draft, block)


def _mixtral(draft: Draft) -> None:
    _embeddings(draft)
    draft.metadata |= {"feed_forward_length": draft.n_ff_expert, "rope.dimension_count": draft.head_size}
    for block in _blocks(draft):
        _plain_layer(draft, block)


def _qwen3moe(draft: Draft) -> None:
    """Real files tell the width of a dense FFN too, which no layer has."""
    _embeddings(draft)
    draft.metadata |= {
        "feed_forward_length": draft.n_ff_shared,
        "expert_feed_forward_length": draft.n_ff_expert,
    }
    for block in _blocks(draft):
        _plain_layer(draft, block)
        _query_key_norms(draft, block, draft.head_size)


def _olmoe(draft: Draft) -> None:
    """Its query and key norms span all heads, which leaves no room for fewer key heads."""
    _embeddings(draft)
    draft.metadata |= {"attention.head_count_kv": N_HEAD, "feed_forward_length": draft.n_ff_expert}
    for block in _blocks(draft):
        _plain_layer(draft, block, N_HEAD)
        _query_key_norms(draft, block, draft.n_embd)


def _gemma4_metadata(draft: Draft) -> Metadata:
    """Sliding windows but for the last layer, where heads are twice as wide and key heads half as many."""
    sliding = [True] * (draft.n_layers - 1) + [False]
    return {
        "feed_forward_length": draft.n_ff_shared,
        "expert_feed_forward_length": draft.n_ff_expert,
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "attention.head_count_kv": [N_HEAD_KV if slides else N_HEAD_KV // 2 for slides in sliding],
        "attention.key_length": 2 * draft.head_size,
        "attention.value_length": 2 * draft.head_size,
        "attention.key_length_swa": draft.head_size,
        "attention.value_length_swa": draft.head_size,
        "attention.sliding_window": SLIDING_WINDOW,
        "attention.sliding_window_pattern": sliding,
        "rope.dimension_count": 2 * draft.head_size,
        "rope.dimension_count_swa": draft.head_size,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }


def _gemma4_attention(draft: Draft, block: str, *, full: bool) -> None:
    """The full layer's keys serve as values; no layer divides by sqrt(head size), so norms are small."""
    head_size = draft.head_size * (2 if full else 1)
    _attention(draft, block, head_size, N_HEAD_KV // (2 if full else 1))
    if full:
        del draft.tensors[f"{block}.attn_v.weight"]
    _query_key_norms(draft, block, head_size, head_size**-0.25)
    draft.around(1.0, draft.n_embd, f"{block}.post_attention_norm.weight")


def _gemma4(draft: Draft) -> None:
    """Every layer adds a dense FFN and its experts; each expert's output has a scale of its own."""
    _embeddings(draft, tied=True)
    draft.metadata |= _gemma4_metadata(draft)
    turning = np.arange(draft.head_size) < draft.head_size // 4  # only these dimensions feel the position
    draft.tensors["rope_freqs.weight"] = np.where(turning, 1.0, 1e30).astype(np.float32)
    for layer, block in enumerate(_blocks(draft)):
        _gemma4_attention(draft, block, full=layer == draft.n_layers - 1)
        _dense_ffn(draft, block)
        for name in ("ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2", "post_ffw_norm"):
            draft.around(1.0, draft.n_embd, f"{block}.{name}.weight")
        draft.around(3.0, draft.n_embd, f"{block}.post_ffw_norm_2.weight")  # experts count most
        _experts(draft, block, input_size=draft.n_embd**-0.5, fused=True)
        draft.around(1.0, draft.n_embd, f"{block}.ffn_gate_inp.scale", spread=0.5)
        draft.around(1.0, draft.n_experts, f"{block}.ffn_down_exps.scale", spread=0.5)
        draft.around(1.0, 1, f"{block}.layer_output_scale.weight")


def _deepseek2_metadata(draft: Draft) -> Metadata:
    rank, half = draft.head_size, draft.head_size // 2
    return {
        "feed_forward_length": draft.n_ff_shared,
        "expert_feed_forward_length": draft.n_ff_expert,
        "leading_dense_block_count": draft.leading_dense,
        "expert_shared_count": draft.n_ff_shared // draft.n_ff_expert,
        "expert_gating_func": SIGMOID_GATING,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "rope.dimension_count": half,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + half,
        "attention.value_length": rank,
        "attention.key_length_mla": draft.head_size,
        "attention.value_length_mla": draft.head_size,
    }


def _latent_attention(draft: Draft, block: str) -> None:
    """Multi-head latent attention: keys and values come out of one vector, rope gets half of each key."""
    rank, half = draft.head_size, draft.head_size // 2
    draft.around(1.0, draft.n_embd, f"{block}.attn_norm.weight")
    draft.matrix(f"{block}.attn_q.weight", N_HEAD * draft.head_size, draft.n_embd)
    draft.matrix(f"{block}.attn_kv_a_mqa.weight", rank + half, draft.n_embd)
    draft.around(1.0, rank, f"{block}.attn_kv_a_norm.weight")
    draft.matrix(f"{block}.attn_k_b.weight", N_HEAD, rank, half)
    draft.matrix(f"{block}.attn_v_b.weight", N_HEAD, draft.head_size, rank)
    draft.matrix(f"{block}.attn_output.weight", draft.n_embd, N_HEAD * draft.head_size)


def _deepseek2(draft: Draft) -> None:
    """DeepSeek V3's routing: the bias has a say in which experts are chosen but not in their weights."""
    _embeddings(draft)
    draft.metadata |= _deepseek2_metadata(draft)
    for layer, block in enumerate(_blocks(draft)):
        _latent_attention(draft, block)
        draft.around(1.0, draft.n_embd, f"{block}.ffn_norm.weight")
        if layer < draft.leading_dense:
            _dense_ffn(draft, block)
        else:
            _experts(draft, block)
            draft.normal(f"{block}.exp_probs_b.bias", draft.n_experts, spread=0.15)
            _dense_ffn(draft, block, "_shexp")


def _gpt_oss(draft: Draft) -> None:
    """Biases everywhere, and a router whose softmax sees only the logits of the chosen experts."""
    _embeddings(draft)
    draft.metadata |= {
        "feed_forward_length": draft.n_ff_expert,
        "expert_feed_forward_length": draft.n_ff_expert,
        "attention.sliding_window": SLIDING_WINDOW,
    }
    for block in _blocks(draft):
        _attention(draft, block, draft.head_size)
        draft.normal(f"{block}.attn_sinks.weight", N_HEAD, spread=1.0)
        draft.around(1.0, draft.n_embd, f"{block}.post_attention_norm.weight")
        _experts(draft, block)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            draft.normal(f"{block}.{name}.bias", len(draft.tensors[f"{block}.{name}.weight"]), spread=0.2)
        draft.normal(f"{block}.ffn_gate_inp.bias", draft.n_experts, spread=0.5)
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            shape = draft.tensors[f"{block}.{name}.weight"].shape[:2]
            draft.normal(f"{block}.{name}.bias", *shape, spread=0.2)


FAMILIES: dict[str, Family] = {
    "gemma4": Family("gemma4", _gemma4),
    "qwen3moe": Family("qwen3moe", _qwen3moe),
    "olmoe": Family("olmoe", _olmoe),
    "llama": Family("llama", _mixtral),
    "deepseek2": Family("deepseek2", _deepseek2, leading_dense=1),
    "gpt-oss": Family("gpt-oss", _gpt_oss),
}


def moe_layers(family: str, n_layers: int = 3) -> list[int]:
    """The layers that have experts, which is what a profile of the model must cover."""
    return list(range(FAMILIES[family].leading_dense, n_layers))


def write_random_model(
    path: PathLike,
    family: str,
    *,
    seed: int = 0,
    n_layers: int = 3,
    n_experts: int = 16,
    top_k: int = 4,
    n_vocab: int = 256,
    n_embd: int = 256,
    n_ff_expert: int = 64,
    quantization: str = "F32",
    extra_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a random model of a family; the same arguments give the same bytes.

    The default widths make 4-bit K-quant mixes fall back to other types for the experts' short down rows,
    as they do for the real Gemma 4. ``quantization`` is the tail of a ``LLAMA_FTYPE_MOSTLY_`` name of
    llama.cpp. ``extra_metadata`` takes full keys and overrides what the family sets.
    """
    if n_layers < 2:  # llama.cpp would abort the whole process over a Gemma 4 with no sliding layer
        raise ValueError("some families have two kinds of layer, so a model needs at least two layers")
    spec = FAMILIES[family]
    random = np.random.default_rng(seed)
    draft = Draft(n_layers, n_experts, top_k, n_vocab, n_embd, n_ff_expert, spec.leading_dense, random)
    spec.build(draft)
    metadata = {"general.name": f"random {family}", "tokenizer.ggml.model": "none"}
    metadata |= {f"{spec.architecture}.{key}": value for key, value in draft.metadata.items()}
    metadata |= extra_metadata or {}
    path = Path(path)
    if quantization == "F32":
        _write(path, spec.architecture, metadata, draft.tensors)
        return
    unquantized = path.with_name(path.name + ".f32")
    try:
        _write(unquantized, spec.architecture, metadata, draft.tensors)
        _quantize(unquantized, path, quantization)
    finally:
        unquantized.unlink(missing_ok=True)


def _write(path: Path, architecture: str, metadata: Metadata, tensors: Tensors) -> None:
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        sub_type = _value_type(value[0]) if isinstance(value, list) else None
        writer.add_key_value(key, value, _value_type(value), sub_type)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    _finish(writer)


def _value_type(value: object) -> GGUFValueType:
    """llama.cpp wants counts unsigned, where gguf would guess a signed type."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return GGUFValueType.UINT32
    return GGUFValueType.get_type(value)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantize(source: Path, target: Path, quantization: str) -> None:
    """Quantize with llama.cpp itself, so that the mix of tensor types is the one of real files."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization}")
    messages: list[bytes] = []
    previous, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(user_data))
    keep = llama_cpp.llama_log_callback(lambda _level, text, _data: messages.append(text))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p())
    try:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    finally:
        llama_cpp.llama_log_set(previous, user_data)
    if failed:
        log = b"".join(messages[-20:]).decode(errors="replace")
        raise RuntimeError(f"llama.cpp cannot quantize {source} to {quantization}:\n{log}")


def split_model(path: PathLike, out_dir: PathLike, n_shards: int) -> list[Path]:
    """Split a model into shards as llama-gguf-split does: all metadata in the first, tensors in order."""
    path, out_dir = Path(path), Path(out_dir)
    reader = GGUFReader(path)
    if not 1 <= n_shards <= len(reader.tensors):
        raise ValueError(f"{path} has {len(reader.tensors)} tensors, which do not make {n_shards} shards")
    out_dir.mkdir(parents=True, exist_ok=True)
    bounds = [len(reader.tensors) * shard // n_shards for shard in range(n_shards + 1)]
    shards = []
    for shard in range(n_shards):
        shards.append(out_dir / f"{path.stem}-{shard + 1:05d}-of-{n_shards:05d}.gguf")
        _write_shard(shards[-1], reader, range(bounds[shard], bounds[shard + 1]), shard, n_shards)
    return shards


def _write_shard(path: Path, reader: GGUFReader, tensors: range, shard: int, n_shards: int) -> None:
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()  # the architecture that the writer adds by itself
    if shard == 0:
        for key, entry in reader.fields.items():
            if not key.startswith("GGUF."):  # the reader's names for the file's header
                sub_type = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(key, entry.contents(), entry.types[0], sub_type)
    writer.add_uint16("split.no", shard)
    writer.add_uint16("split.count", n_shards)
    writer.add_int32("split.tensors.count", len(reader.tensors))
    for index in tensors:
        tensor = reader.tensors[index]
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def copy_model(
    source: PathLike,
    target: PathLike,
    *,
    without: str | None = None,
    add: Callable[[GGUFWriter], None] = lambda _: None,
) -> None:
    """Rewrite a model through gguf's own reader and writer, one tensor left out, or metadata added by `add`."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, entry.contents(), entry.types[0])
    add(writer)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
