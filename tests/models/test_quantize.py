"""Quantising: byte for byte what llama.cpp writes, whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray
from support.command_line import ok, run
from support.random_models import quantize as quantized_by_llama_cpp
from support.random_models import split_model

import coe_native as coe
from coe_native.llama.quantizer import TYPES, QuantizeOptions
from coe_native.model.imatrix_file import Imatrix
from coe_native.recipes import demo
from coe_native.surgery.quantize import plan_quantization, quantize

ModelFile = Callable[[str, str], Path]


Change = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]


def write_imatrix(path: Path, model: Path, *, change: Change = lambda _, values: values) -> Path:
    """Write an importance matrix of random sums for all matrices of a model, as llama-imatrix does."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in GGUFReader(model).tensors:
        shape = [int(n) for n in tensor.shape]
        if len(shape) < 2 or "weight" not in tensor.name or "norm" in tensor.name:
            continue
        n_matrices = shape[2] if len(shape) > 2 else 1
        counts = (
            random.integers(0, 3, (n_matrices, 1)).astype(np.float32)
            if n_matrices > 1
            else np.ones((1, 1), np.float32)
        )
        sums = random.random((n_matrices, shape[0])).astype(np.float32) * counts
        writer.add_tensor(f"{tensor.name}.in_sum2", change(tensor.name, sums))
        writer.add_tensor(f"{tensor.name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q2_K", "IQ4_XS", "Q8_0", "F16", "MXFP4_MOE"])
@pytest.mark.parametrize("family", ["gemma4", "qwen3moe", "gpt-oss"])
def test_files_are_those_of_llama_cpp(tmp_path: Path, model_file: ModelFile, family: str, file_type: str) -> None:
    source = model_file(family, "F32")
    options = QuantizeOptions(file_type)
    planned = plan_quantization(source, options)
    out = quantize(source, options, tmp_path / "out.gguf")
    expected = tmp_path / "expected.gguf"
    quantized_by_llama_cpp(source, expected, file_type)
    assert out.read_bytes() == expected.read_bytes()
    assert planned.n_bytes == out.stat().st_size
    assert planned.types == {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(out).tensors}
    assert sorted(tmp_path.iterdir()) == [expected, out]


def test_all_types_of_llama_cpp_are_known() -> None:
    from llama_cpp import llama_cpp as api

    known = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): value
        for name, value in vars(api).items()
        if name.startswith("LLAMA_FTYPE_") and isinstance(value, int)
    }
    assert {name: value for name, value in TYPES.items() if name in known} == {
        name: value for name, value in known.items() if name in TYPES
    }
    assert set(known) - set(TYPES) <= {"GUESSED", "Q4_1_SOME_F16", "NVFP4", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8"}


def test_options_change_the_types_of_tensors(tmp_path: Path) -> None:
    options = QuantizeOptions(
        "Q4_0",
        output_type="q5_0",
        embedding_type="q8_0",
        tensor_types=(("attn_q", "q6_K"), (r"blk\.[01]\.ffn_down", "f16")),
    )
    out = quantize(demo.MODEL, options, tmp_path / "out.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(out).tensors}
    assert types == plan_quantization(demo.MODEL, options).types
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_q.weight"] == "Q6_K"
    pure = plan_quantization(demo.MODEL, QuantizeOptions("Q4_0", pure=True)).types
    assert types["blk.3.attn_k.weight"] == pure["blk.3.attn_k.weight"] == "Q4_0"


def test_importance_matrices_are_used_and_recorded(tmp_path: Path) -> None:
    imatrix = write_imatrix(tmp_path / "im.gguf", demo.MODEL)
    read = Imatrix.load(imatrix)
    assert (read.datasets, read.n_chunks, read.chunk_size) == (("text.txt",), 3, 512)
    entry = read.entries["blk.0.ffn_down_exps.weight"]
    assert entry.weights.shape == entry.sums.shape
    assert (entry.weights[entry.counts == 0] == 1).all()
    seen = entry.counts > 0
    np.testing.assert_allclose(entry.weights[seen], entry.sums[seen] / entry.counts[seen, None])
    options = QuantizeOptions("Q3_K_S")
    planned = plan_quantization(demo.MODEL, options, imatrix=imatrix)
    with_imatrix = quantize(demo.MODEL, options, tmp_path / "with.gguf", imatrix=imatrix)
    without = quantize(demo.MODEL, options, tmp_path / "without.gguf")
    assert planned.n_bytes == with_imatrix.stat().st_size
    assert not np.array_equal(
        *(
            next(t.data for t in GGUFReader(path).tensors if t.name == "blk.0.ffn_down_exps.weight")
            for path in (with_imatrix, without)
        )
    )
    fields = GGUFReader(with_imatrix).fields
    assert fields["quantize.imatrix.file"].contents() == str(imatrix)
    assert fields["quantize.imatrix.chunks_count"].contents() == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, v: v[:, :-1] if name == "blk.1.ffn_down_exps.weight" else v, r"blk\.1\.ffn_down_exps"),
        (lambda name, v: np.full_like(v, np.nan) if "blk.2." in name else v, "damaged"),
    ],
)
def test_importance_matrices_that_do_not_fit_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    imatrix = write_imatrix(tmp_path / "im.gguf", demo.MODEL, change=change)
    with pytest.raises(coe.InputError, match=message):
        quantize(demo.MODEL, QuantizeOptions("Q4_0"), tmp_path / "out.gguf", imatrix=imatrix)
    assert list(tmp_path.iterdir()) == [imatrix]


def test_what_llama_cpp_refuses_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(coe.CoeError, match="--imatrix"):
        quantize(demo.MODEL, QuantizeOptions("IQ2_XXS"), tmp_path / "out.gguf")
    with pytest.raises(coe.InputError, match="Q4_K_M"):
        QuantizeOptions("Q4_XL")
    for options in (
        {"output_type": "bar"},
        {"embedding_type": "Q4_K_M"},
        {"tensor_types": (("ffn_down", "q4_0"), ("ffn_up", "Q4_K_M"))},
    ):
        with pytest.raises(coe.InputError, match="q4_K"):
            QuantizeOptions("Q4_0", **options)
    with pytest.raises(coe.CoeError, match="quantise"):
        quantize(demo.MODEL, QuantizeOptions("Q4_0", tensor_types=(("([", "q4_0"),)), tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())


def test_specialists_and_split_models_are_quantised(
    tmp_path: Path, model_file: ModelFile, profile_of: Callable[[str, str], coe.RoutingProfile]
) -> None:
    """The record of surgery stays, and the result is the parent's, cut, in the new type."""
    parent = model_file("qwen3moe", "F32")
    mask = coe.build_mask(profile_of("qwen3moe", "F32"), 8)
    cut = coe.prune(parent, mask, tmp_path / "cut.gguf")
    small = quantize(cut, QuantizeOptions("Q8_0"), tmp_path / "small.gguf")
    moe = coe.MoeModel(small)
    assert moe.surgery is not None
    assert (moe.surgery.digest, moe.n_experts) == (mask.digest, 8)
    shards = split_model(cut, tmp_path, 3)
    joined = quantize(shards[0], QuantizeOptions("Q8_0"), tmp_path / "joined.gguf")
    ours, theirs = (
        {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors} for path in (joined, small)
    )
    assert ours == theirs
    assert plan_quantization(shards[0], QuantizeOptions("Q8_0")).n_bytes == joined.stat().st_size


def test_the_command_says_the_size_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    planned = ok("quantize", demo.MODEL, "--type", "q4_k", "--dry-run", "--json").json
    assert ok("quantize", demo.MODEL, "--type", "Q4_K_M", "-o", out, "--json").json["bytes"] == planned["bytes"]
    assert "Q4_K_M" in ok("quantize", demo.MODEL, "--type", "Q4_K_M", "--dry-run").err
    for line in (["--type", "Q4_0"], ["--type", "Q4_0", "-o", out, "--dry-run"], ["--type", "Q4_0", "-o", out]):
        assert run("quantize", demo.MODEL, *line).status == 2
    assert run("quantize", demo.MODEL, "--type", "Q4_0", "-o", out, "--tensor-type", "x").status == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_quantisation_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [
        sys.executable,
        "-m",
        "coe_native",
        "quantize",
        demo.MODEL,
        "--type",
        "IQ4_XS",
        "--threads",
        "1",
        "-o",
        out,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert not list(tmp_path.iterdir())
