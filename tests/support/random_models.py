"""Tiny mixture-of-experts GGUF files with random weights, for the tests.

Routing, profiling and pruning depend on an architecture's tensors and metadata and not on what a model
has learned, so a few megabytes of noise stand in for every model family that llama.cpp runs. The files
carry no tokenizer: feed them token ids below ``n_vocab``.

No list of tensors is kept for any architecture: from metadata alone, llama.cpp itself makes a model without
a file, and says by name and shape what it would fill. The noise is scaled so that a router has clear
preferences which differ from token to token, and so that the experts' output is a large part of the residual
stream: a wrong choice of expert shows in the logits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import llama_cpp
import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from support.architectures import ARCHITECTURES, Architecture, Sizes, shared_metadata
from support.slow_capture import Tensor

PathLike: TypeAlias = "str | os.PathLike[str]"
Metadata: TypeAlias = "dict[str, Any]"
Array: TypeAlias = "npt.NDArray[Any]"

FAMILIES = ("deepseek2", "gemma4", "gpt-oss", "llama", "olmoe", "qwen3moe")
"""Rows of ARCHITECTURES that differ in what matters most, for tests too long for all rows."""

ROUTER_SPREAD = 2.0  # standard deviation of one token's router logits

_SCALE = re.compile(r"blk\.\d+\.(?!ffn_gate_inp\.)[\w.]+\.(scale|input_scale)")


def moe_layers(row: str) -> list[int]:
    """The blocks that have experts and run, which is what a profile of the model must cover."""
    architecture = ARCHITECTURES[row]
    return architecture.moe_blocks(Sizes(n_layers=architecture.n_layers))


def write_random_model(
    path: PathLike,
    row: str,
    *,
    seed: int = 0,
    quantization: str = "F32",
    extra_metadata: Mapping[str, Any] | None = None,
    **sizes: int,
) -> None:
    """Write a random model of a row of ARCHITECTURES; the same arguments give the same bytes.

    `sizes` are those of Sizes. The default widths make 4-bit K-quant mixes fall back to other types for the
    experts' short down rows, as they do for the real Gemma 4. ``quantization`` is the tail of a
    ``LLAMA_FTYPE_MOSTLY_`` name of llama.cpp. ``extra_metadata`` takes full keys and overrides the row's.
    """
    path, spec = Path(path), ARCHITECTURES[row]
    drawn = Sizes(**{"n_layers": spec.n_layers, **sizes})
    name = spec.architecture or row
    metadata = {"general.name": f"random {row}", "tokenizer.ggml.model": "none"}
    for key, value in (shared_metadata(drawn) | spec.metadata(drawn)).items():
        metadata[key if key.startswith("tokenizer.") else f"{name}.{key}"] = value
    unquantized = path.with_name(path.name + ".f32")
    try:
        _write(unquantized, name, metadata, {})  # a header alone
        random = np.random.default_rng(seed)
        tensors = {
            tensor: _noise(tensor, shape, random, drawn)
            for tensor, shape in _wanted_tensors(unquantized).items()
            if not _left_out(tensor, spec)
        }
        metadata |= extra_metadata or {}
        _write(unquantized, name, metadata, _fused(tensors) if spec.fused else tensors)
        if quantization == "F32":
            unquantized.replace(path)
        else:
            quantize(unquantized, path, quantization)
    finally:
        unquantized.unlink(missing_ok=True)


def _left_out(tensor: str, spec: Architecture) -> bool:
    """llama.cpp takes the scales of NVFP4 beside every matrix."""
    return (
        not spec.scaled and _SCALE.fullmatch(tensor) is not None and tensor.split(".", 2)[2] not in spec.own_scales
    )


def ggml_base() -> ctypes.CDLL:
    """The library of ggml that llama_cpp has loaded."""
    return ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))


class _GgufOptions(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_Fill = ctypes.CFUNCTYPE(None, ctypes.POINTER(Tensor), ctypes.c_void_p)


def _wanted_tensors(header: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape (in NumPy's order) of each tensor that llama.cpp would take for the model whose metadata
    is in `header`, optional ones too."""
    library = llama_cpp.llama_cpp._lib
    base = ggml_base()
    base.gguf_init_from_file.restype = ctypes.c_void_p
    base.gguf_init_from_file.argtypes = (ctypes.c_char_p, _GgufOptions)
    base.gguf_free.argtypes = (ctypes.c_void_p,)
    make = library.llama_model_init_from_user
    make.restype = ctypes.c_void_p
    make.argtypes = (ctypes.c_void_p, _Fill, ctypes.c_void_p, llama_cpp.llama_model_params)
    shapes = {}

    def note(tensor: Any, _: Any) -> None:
        shape = list(tensor.contents.ne)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        shapes[tensor.contents.name.decode()] = tuple(reversed(shape))

    params = llama_cpp.llama_model_default_params()
    params.load_mtp = True
    llama_cpp.llama_backend_init()
    metadata = base.gguf_init_from_file(os.fsencode(header), _GgufOptions(True, None))
    with _quiet() as messages:
        model = make(metadata, _Fill(note), None, params)
    base.gguf_free(metadata)
    if not model:
        raise RuntimeError(f"llama.cpp makes no model of {header}:\n{messages()}")
    llama_cpp.llama_model_free(model)
    return shapes


# By a tensor's name in its block: uniform between two numbers, or of a spread around zero. The first that fits.
_UNIFORM = {r"rope_.*": (1, 1), r"ssm_a": (-1, -0.3), r".*norm.*weight": (0.8, 1.2), r".*scale.*": (0.6, 1.4)}
_SPREAD = {r"exp_probs_b.*": 0.15, r"ffn_gate_inp\.bias": 0.5, r".*bias": 0.2, r"token_embd\.weight": 1.0}
# Matrices: the size of the output for an input of unit size, if not 1.
_GAIN = {"ffn_gate_inp.weight": ROUTER_SPREAD, "ffn_down_exps.weight": 3.0, "output.weight": 2.0}


def _noise(name: str, shape: tuple[int, ...], random: np.random.Generator, sizes: Sizes) -> Array:
    """Values as a trained model might have them; rows last."""
    kind = name.split(".", 2)[2] if name.startswith("blk.") else name
    if kind == "ffn_gate_tid2eid.weight":  # from token to experts, all different
        return random.random((shape[0], sizes.n_experts)).argsort(axis=1)[:, : shape[1]].astype(np.int32)
    for pattern, bounds in _UNIFORM.items():
        if re.fullmatch(pattern, kind):
            return random.uniform(*bounds, shape).astype(np.float32)
    gain = _GAIN.get(kind, 1.0) * shape[-1] ** -0.5 if len(shape) > 1 else 0.2
    spread = next((spread for pattern, spread in _SPREAD.items() if re.fullmatch(pattern, kind)), gain)
    return random.standard_normal(shape, dtype=np.float32) * np.float32(spread)


def _fused(tensors: dict[str, Array]) -> dict[str, Array]:
    """The same with one tensor for the gate and up matrices of a layer's experts."""
    fused = {}
    for name, values in tensors.items():
        if ".ffn_gate_exps." in name:
            up = tensors[name.replace("gate_exps", "up_exps")]
            fused[name.replace("gate_exps", "gate_up_exps")] = np.concatenate([values, up], axis=1)
        elif ".ffn_up_exps." not in name:
            fused[name] = values
    return fused


def _write(path: Path, architecture: str, metadata: Metadata, tensors: Mapping[str, Array]) -> None:
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_key_value(key, value, _value_type(value), _element_type(key, value))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    _finish(writer)


def _value_type(value: object) -> GGUFValueType:
    """llama.cpp wants counts unsigned, where gguf would guess a signed type."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return GGUFValueType.UINT32
    return GGUFValueType.get_type(value)


def _element_type(key: str, value: object) -> GGUFValueType | None:
    if not isinstance(value, list):
        return None
    if key.endswith("token_type"):
        return GGUFValueType.INT32
    return GGUFValueType.UINT64 if ".ple." in key and not key.endswith("layers") else _value_type(value[0])


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Keeps what llama.cpp logs from being printed; yields a way to read its last lines."""
    messages: list[bytes] = []
    previous, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(previous), ctypes.byref(user_data))
    keep = llama_cpp.llama_log_callback(lambda _level, text, _data: messages.append(text))
    llama_cpp.llama_log_set(keep, ctypes.c_void_p())
    try:
        yield lambda: b"".join(messages[-20:]).decode(errors="replace")
    finally:
        llama_cpp.llama_log_set(previous, user_data)


def quantize(source: Path, target: Path, quantization: str) -> None:
    """Quantize with llama.cpp itself, so that the mix of tensor types is the one of real files."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = 1
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization}")
    with _quiet() as messages:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
        if failed:
            raise RuntimeError(f"llama.cpp cannot quantize {source} to {quantization}:\n{messages()}")


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
        copy_entries(reader, writer)
    writer.add_uint16("split.no", shard)
    writer.add_uint16("split.count", n_shards)
    writer.add_int32("split.tensors.count", len(reader.tensors))
    for index in tensors:
        tensor = reader.tensors[index]
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def copy_entries(reader: GGUFReader, writer: GGUFWriter) -> None:
    """All metadata of one file into another."""
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key not in writer.kv_data[0]:  # GGUF.: the reader's own
            sub_type = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, entry.contents(), entry.types[0], sub_type)


def copy_model(
    source: PathLike,
    target: PathLike,
    *,
    without: str | None = None,
    add: Callable[[GGUFWriter], None] = lambda _: None,
) -> None:
    """Rewrite a model through gguf's own reader and writer, one tensor left out, or metadata added by `add`."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, "")
    writer.kv_data[0].clear()  # the architecture that the writer adds by itself
    copy_entries(reader, writer)
    add(writer)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
