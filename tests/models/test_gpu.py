"""What is counted on a GPU is what is counted on the CPU: ``COE_TEST_GPU=1 pytest tests/models/test_gpu.py``, and
``tests/vulkan/run`` on a machine without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.architectures import ARCHITECTURES
from support.devices import RUNTIMES
from support.masks import check_live_mask
from support.random_models import write_random_model

import coe_native as coe
from coe_native._native import core
from coe_native.recipes import demo

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not core.free_gpu_memory(), reason="no GPU, or without COE_TEST_GPU=1"),
]

ModelFile = Callable[[str, str], Path]
Documents = Sequence[str] | Sequence[Sequence[int]]

PROFILE = """
import json, sys
import coe_native as coe
model, output, documents, options = sys.argv[1], sys.argv[2], json.load(sys.stdin), json.loads(sys.argv[3])
with coe.Model(model, **options) as model:
    coe.profile(model, documents, stats="contribution").save(output)
"""


def profile_on_cpu(path: Path, documents: Documents, directory: Path, **options: int) -> coe.RoutingProfile:
    """Of a process that sees no GPU: llama.cpp sends large batches to a GPU even where no layer is there."""
    hidden = {f"{runtime}_VISIBLE_DEVICES": "" for runtime in RUNTIMES}
    output = directory / "cpu.profile.gguf"
    command = [sys.executable, "-c", PROFILE, str(path), str(output), json.dumps(options)]
    subprocess.run(command, input=json.dumps(documents), text=True, check=True, env={**os.environ, **hidden})
    return coe.RoutingProfile.load(output)


PLACES = {"all there": {}, "experts here": {"n_cpu_moe": -1}, "one block's experts here": {"n_cpu_moe": 1}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("quantization", ["F32", "Q4_K_M"])
def test_counts_are_those_of_the_cpu(
    model_file: ModelFile, documents: list[list[int]], family: str, quantization: str, place: str, tmp_path: Path
) -> None:
    """A GPU rounds activations in other places: near-ties of random weights fall to the other side."""
    path = model_file(family, quantization)
    sizes = {"n_ctx": 128, "n_batch": 64, "n_sequences": 16}
    here = profile_on_cpu(path, documents, tmp_path, **sizes)
    with coe.Model(path, **sizes, **PLACES[place]) as model:
        there = coe.profile(model, documents, stats="contribution")
    assert here.n_tokens == there.n_tokens
    moved = np.abs(here.histograms - there.histograms).sum() / 2
    assert moved <= (0.03 if quantization == "F32" else 0.1) * here.histograms.sum()
    np.testing.assert_allclose(there.weight_sum.sum(), here.weight_sum.sum(), rtol=1e-2)
    assert here.outputs is not None
    assert there.outputs is not None
    for name in ("norm_sum", "weighted_norm_sum"):
        ours, theirs = (getattr(outputs, name) for outputs in (there.outputs, here.outputs))
        assert np.abs(ours - theirs).sum() <= (0.05 if quantization == "F32" else 0.1) * theirs.sum()


@pytest.mark.parametrize("row", ARCHITECTURES)
def test_every_architecture_counts_and_masks_there(row: str, tmp_path: Path, documents: list[list[int]]) -> None:
    """Choices, weights and norms are the CPU's, and the masked parent is the specialist. A device that rounds in
    other places decides some near-ties of random weights differently."""
    path = tmp_path / "model.gguf"
    write_random_model(path, row)
    here = profile_on_cpu(path, documents[:2], tmp_path, n_ctx=128, n_batch=128)
    with coe.Model(path, n_ctx=128, n_batch=128) as model:
        there = coe.profile(model, documents[:2], stats="contribution")
    assert here.n_tokens == there.n_tokens
    assert (there.histograms.sum(axis=(1, 2)) == here.histograms.sum(axis=(1, 2))).all()
    moved = np.abs(here.histograms - there.histograms).sum() / 2
    assert moved <= 0.05 * here.histograms.sum()
    np.testing.assert_allclose(there.weight_sum.sum(), here.weight_sum.sum(), rtol=1e-2)
    for name in ("norm_sum", "weighted_norm_sum"):
        ours, theirs = getattr(there.outputs, name), getattr(here.outputs, name)
        assert np.abs(ours - theirs).sum() <= 0.05 * theirs.sum()
    if not ARCHITECTURES[row].refused:
        check_live_mask(
            path, tmp_path / "specialist.gguf", 1e-3, masked_options={}, pruned_options={}, near_ties=0.05
        )


def test_trained_weights_agree(tmp_path: Path) -> None:
    """The demo's model, whose routers are sure of themselves."""
    documents = [str(document.content) for document in demo.corpus("python", "profile").documents[:20]]
    here = profile_on_cpu(demo.MODEL, documents, tmp_path, n_sequences=16)
    with coe.Model(demo.MODEL, n_sequences=16) as model:
        there = coe.profile(model, documents, stats="contribution")
    moved = np.abs(here.histograms - there.histograms).sum() / 2
    assert moved <= 0.01 * here.histograms.sum()
    for name in ("norm_sum", "weighted_norm_sum"):
        ours, theirs = getattr(there.outputs, name), getattr(here.outputs, name)
        assert np.abs(ours - theirs).sum() <= 0.01 * theirs.sum()
    for method in coe.METHODS:
        masks = [coe.build_mask(profile, 16, method=method) for profile in (here, there)]
        assert sum(overlap.shared for overlap in coe.compare(*masks)) >= 0.95 * 16 * len(here.layers)


def test_a_live_mask_works_on_the_gpu(model_file: ModelFile, tmp_path: Path, family: str) -> None:
    """The parent masked on the GPU is the specialist there."""
    check_live_mask(
        model_file(family, "F32"),
        tmp_path / "specialist.gguf",
        1e-3,
        masked_options={},
        pruned_options={},
        near_ties=0.05,
    )


@pytest.mark.parametrize("row", ["deepseek2", "gemma4", "gpt-oss", "granitehybrid", "qwen3moe"])
def test_importance_matrices_are_those_of_the_cpu(row: str, tmp_path: Path, documents: list[list[int]]) -> None:
    path = tmp_path / "model.gguf"
    write_random_model(path, row)
    program = """
import json, sys
import coe_native as coe
with coe.Model(sys.argv[1], n_ctx=128, n_batch=128, n_gpu_layers=0) as model:
    coe.compute_imatrix(model, json.load(sys.stdin), min_tokens=0).save(sys.argv[2])
"""
    hidden = {f"{runtime}_VISIBLE_DEVICES": "" for runtime in RUNTIMES}
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "cpu.gguf")]
    subprocess.run(command, input=json.dumps(documents), text=True, check=True, env={**os.environ, **hidden})
    here = coe.Imatrix.load(tmp_path / "cpu.gguf")
    with coe.Model(path, n_ctx=128, n_batch=128) as model:
        there = coe.compute_imatrix(model, documents, min_tokens=0)
    assert set(there.entries) == set(here.entries)
    for name, entry in there.entries.items():
        ours, theirs = entry.counts, here.entries[name].counts
        assert ours.sum() == theirs.sum(), name
        assert np.abs(ours - theirs).sum() <= 0.05 * theirs.sum(), name
        np.testing.assert_allclose(entry.sums.sum(), here.entries[name].sums.sum(), rtol=2e-2, err_msg=name)
