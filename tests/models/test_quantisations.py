"""Experts in every type that llama.cpp loads: an expert's slice is bytes, whatever they mean."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray
from support.distributions import divergence, log_softmax, logits
from support.masks import unused_experts
from support.random_models import copy_entries, ggml_base, write_random_model

import coe_native as coe
from coe_native._native import core

# Whole numbers, and what activations are rounded to: no weights.
NO_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
TYPES = [kind.name for kind in GGMLQuantizationType if kind.name not in NO_WEIGHTS | {"F32"}]

KEEP = 6
N_ROWS = 64


def quantize(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """By ggml, all inputs of equal importance; rows are the last dimension.

    The smallest types take long, so only some rows are quantised; the tensor consists of these in random order.
    """
    base = ggml_base()
    base.ggml_row_size.restype = ctypes.c_size_t
    base.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    )
    n_columns = values.shape[-1]
    source = np.ascontiguousarray(values.reshape(-1, n_columns)[:N_ROWS])
    rows = np.zeros((len(source), base.ggml_row_size(kind, n_columns)), np.uint8)
    importance = np.ones(n_columns, np.float32)
    base.ggml_quantize_chunk(
        kind, source.ctypes.data, rows.ctypes.data, 0, len(source), n_columns, importance.ctypes.data
    )
    return rows[np.random.default_rng(0).integers(len(rows), size=values.shape[:-1])]


@pytest.fixture(scope="module")
def unquantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("types") / "parent.gguf"
    write_random_model(path, "qwen3moe", n_ff_expert=256)  # rows that all types can hold
    return path


@pytest.fixture(params=TYPES)
def parent(request: pytest.FixtureRequest, unquantised: Path, tmp_path: Path) -> Path:
    """The model with all its experts in one type."""
    path, kind = tmp_path / "parent.gguf", GGMLQuantizationType[request.param]
    reader = GGUFReader(unquantised)
    writer = GGUFWriter(path, "qwen3moe")
    copy_entries(reader, writer)
    for tensor in reader.tensors:
        if "exps" in tensor.name:
            writer.add_tensor(tensor.name, quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_experts_of_every_type(parent: Path, tmp_path: Path, documents: list[list[int]]) -> None:
    """Kept slices are the parent's bytes, all norms are those of the values, and llama.cpp runs the file as it
    runs the masked parent."""
    kind = GGUFReader(parent).tensors[-1].tensor_type
    profile = coe.profile(parent, documents, n_ctx=128, n_threads=1)
    mask = unused_experts(profile, KEEP)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    checks = {check.name: check for check in coe.verify(out, parent, mask)}
    assert all(check.passed for check in checks.values()), checks
    n_slices = KEEP * sum(len(layer.tensors) for layer in coe.MoeModel(parent).layers)
    assert str(n_slices) in checks["norms"].detail

    before = {tensor.name: tensor for tensor in GGUFReader(parent).tensors}
    n_quantised = 0
    for tensor in GGUFReader(out).tensors:
        if "exps" not in tensor.name:
            continue
        n_quantised += tensor.tensor_type == before[tensor.name].tensor_type
        kept = list(mask.kept[int(tensor.name.split(".")[1])])
        np.testing.assert_array_equal(tensor.data, before[tensor.name].data[kept])
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            continue
        norms = np.linalg.norm(values.reshape(KEEP, -1).astype(np.float64), axis=1)
        found = core.slice_norms(tensor.data.tobytes(), int(tensor.tensor_type), KEEP)
        np.testing.assert_allclose(found, norms, rtol=1e-4)
    assert n_quantised == 9

    masked = log_softmax(logits(parent, documents[4], mask))
    pruned = log_softmax(logits(out, documents[4]))
    whole = log_softmax(logits(parent, documents[4]))
    assert divergence(masked, pruned) < 0.01, kind
    assert divergence(whole, pruned) > 20 * divergence(masked, pruned)

    zeroed = coe.zero(parent, mask, tmp_path / "zero.gguf")
    assert all(check.passed for check in coe.verify(zeroed, parent, mask))
