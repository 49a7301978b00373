"""Gemma 4 mixtures of experts of any size: random weights, in the types that llama.cpp's own quantiser gives."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

POOL_ROWS = 64
"""Different rows of each type and length; more would only take longer to make."""


@dataclass(frozen=True)
class Shape:
    """A model's widths. Every sixth layer has full attention: heads twice as wide, fewer of them for keys, keys
    used as values."""

    n_embd: int
    n_ff: int
    n_ff_expert: int
    n_layers: int
    n_head: int = 16
    head_size: int = 256
    n_experts: int = 128
    n_vocab: int = 262144

    def is_full(self, layer: int) -> bool:
        return layer % 6 == 5

    def n_head_kv(self, layer: int) -> int:
        return 2 if self.is_full(layer) else 8

    def metadata(self) -> dict[str, Any]:
        layers, sizes = range(self.n_layers), {"": 2 * self.head_size, "_swa": self.head_size}
        return {
            "gemma4.block_count": self.n_layers,
            "gemma4.embedding_length": self.n_embd,
            "gemma4.feed_forward_length": self.n_ff,
            "gemma4.expert_feed_forward_length": self.n_ff_expert,
            "gemma4.expert_count": self.n_experts,
            "gemma4.expert_used_count": 8,
            "gemma4.attention.head_count": self.n_head,
            "gemma4.attention.head_count_kv": [self.n_head_kv(layer) for layer in layers],
            "gemma4.attention.sliding_window": 1024,
            "gemma4.attention.sliding_window_pattern": [not self.is_full(layer) for layer in layers],
            **{
                f"gemma4.attention.{part}_length{kind}": n
                for part in ("key", "value")
                for kind, n in sizes.items()
            },
            **{f"gemma4.rope.dimension_count{kind}": n for kind, n in sizes.items()},
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape in NumPy's order of each tensor."""
        embd = self.n_embd
        yield "token_embd.weight", (self.n_vocab, embd)
        yield "output_norm.weight", (embd,)
        yield "rope_freqs.weight", (self.head_size,)
        for layer in range(self.n_layers):
            full = self.is_full(layer)
            head = self.head_size * (2 if full else 1)
            n_head_kv = self.n_head_kv(layer)
            shapes: dict[str, tuple[int, ...]] = {
                "attn_q.weight": (self.n_head * head, embd),
                "attn_k.weight": (n_head_kv * head, embd),
                **({} if full else {"attn_v.weight": (n_head_kv * head, embd)}),
                "attn_output.weight": (embd, self.n_head * head),
                "attn_q_norm.weight": (head,),
                "attn_k_norm.weight": (head,),
                "ffn_gate.weight": (self.n_ff, embd),
                "ffn_up.weight": (self.n_ff, embd),
                "ffn_down.weight": (embd, self.n_ff),
                "ffn_gate_inp.weight": (self.n_experts, embd),
                "ffn_gate_inp.scale": (embd,),
                "ffn_gate_up_exps.weight": (self.n_experts, 2 * self.n_ff_expert, embd),
                "ffn_down_exps.weight": (self.n_experts, embd, self.n_ff_expert),
                "ffn_down_exps.scale": (self.n_experts,),
                "layer_output_scale.weight": (1,),
            }
            for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2"):
                shapes[f"{norm}.weight"] = (embd,)
            for norm in ("post_ffw_norm_2", "post_ffw_norm"):
                shapes[f"{norm}.weight"] = (embd,)
            for name, shape in shapes.items():
                yield f"blk.{layer}.{name}", shape


GEMMA4_26B = Shape(n_embd=2816, n_ff=2112, n_ff_expert=704, n_layers=30)
_TWIN = replace(GEMMA4_26B, n_embd=256, n_ff=96, n_ff_expert=64, n_head=8, head_size=32, n_experts=16)


def copy_metadata(source: Path, writer: GGUFWriter, changes: Mapping[str, Any]) -> None:
    """All that `source` says, but for `changes`; its vocabulary is filled up to the size that shapes have here."""
    for key, field in GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = changes.get(key, field.contents())
        if key in FILLERS:
            value += [FILLERS[key](index) for index in range(len(value), GEMMA4_26B.n_vocab)]
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], element)


FILLERS: dict[str, Callable[[int], Any]] = {
    "tokenizer.ggml.tokens": "<filler {}>".format,
    "tokenizer.ggml.scores": lambda index: -1000.0,
    "tokenizer.ggml.token_type": lambda index: 1,
}


def quantised_types(vocabulary: Path, directory: Path, n_layers: int) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor in llama.cpp's Q4_K_M, from a twin whose rows divide into blocks as the model's do:
    by 256, but for the rows of both kinds of FFN's second matrix, which divide by 32 only."""
    twin = replace(_TWIN, n_layers=n_layers)
    plain, quantised = directory / "twin.gguf", directory / "twin-Q4_K_M.gguf"
    writer = GGUFWriter(plain, "gemma4")
    copy_metadata(vocabulary, writer, twin.metadata())
    for name, shape in twin.tensors():
        writer.add_tensor(name, np.ones(shape, np.float32))
    finish(writer)
    params = llama_cpp.llama_model_quantize_default_params()
    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(os.fsencode(plain), os.fsencode(quantised), ctypes.byref(params)):
        raise SystemExit("llama.cpp cannot quantise the twin")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(quantised).tensors}
    plain.unlink()
    quantised.unlink()
    return types


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Noise:
    """Rows of random numbers, quantised by ggml, drawn from a pool."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._pools: dict[tuple[int, GGMLQuantizationType], NDArray[np.uint8]] = {}
        self._ggml = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
        self._ggml.ggml_row_size.restype = ctypes.c_size_t
        self._ggml.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._ggml.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, count, count, count, pointer)

    def row_bytes(self, n_columns: int, kind: GGMLQuantizationType) -> int:
        return int(self._ggml.ggml_row_size(kind, n_columns))

    def rows(self, n_rows: int, n_columns: int, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
        """[n_rows, bytes of a row], of unit outputs for unit inputs."""
        if (n_columns, kind) not in self._pools:
            values = self._random.standard_normal((POOL_ROWS, n_columns), dtype=np.float32) * n_columns**-0.5
            pool = np.empty((POOL_ROWS, self.row_bytes(n_columns, kind)), np.uint8)
            self._ggml.ggml_quantize_chunk(
                kind, values.ctypes.data, pool.ctypes.data, 0, POOL_ROWS, n_columns, None
            )
            self._pools[n_columns, kind] = pool
        return self._pools[n_columns, kind][self._random.integers(0, POOL_ROWS, n_rows)]

    def vector(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Norms and scales around 1; routers with clear preferences; a quarter of each head feels the position."""
        if name == "rope_freqs.weight":
            return np.where(np.arange(shape[0]) < shape[0] // 4, 1.0, 1e30).astype(np.float32)
        if name.endswith("ffn_gate_inp.weight"):
            return 2 * self._random.standard_normal(shape, dtype=np.float32)
        return self._random.uniform(0.8, 1.2, shape).astype(np.float32)


def write(path: Path, shape: Shape, vocabulary: Path) -> None:
    """Writes a model, a tensor at a time. `vocabulary`: a Gemma 4 that lends its tokenizer and other metadata; it
    needs no tensors."""
    types = quantised_types(vocabulary, path.parent, shape.n_layers)
    noise = Noise()
    writer = GGUFWriter(path, "gemma4")
    file_type = {"general.file_type": int(llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)}
    copy_metadata(vocabulary, writer, file_type | shape.metadata())
    tensors = list(shape.tensors())
    for name, dimensions in tensors:
        kind = types[name]
        if kind == GGMLQuantizationType.F32:
            n_bytes = 4 * int(np.prod(dimensions))
            writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes)
        else:
            in_bytes = (*dimensions[:-1], noise.row_bytes(dimensions[-1], kind))
            writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dimensions in tensors:
        kind = types[name]
        if kind == GGMLQuantizationType.F32:
            writer.write_tensor_data(noise.vector(name, dimensions))
        else:
            writer.write_tensor_data(noise.rows(int(np.prod(dimensions[:-1])), dimensions[-1], kind))
    writer.close()
