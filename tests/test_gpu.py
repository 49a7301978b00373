"""What is counted on a GPU is what is counted on the CPU: ``COE_TEST_GPU=1 pytest tests/test_gpu.py``, and
``tests/vulkan/run`` on a machine without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from architectures import ARCHITECTURES
from conftest import TOLERANCE, check_live_mask
from random_models import write_random_model

import coe_native as coe
from coe_native import demo
from coe_native._native import core

pytestmark = pytest.mark.skipif(not core.free_gpu_memory(), reason="no GPU, or without COE_TEST_GPU=1")

ModelFile = Callable[[str, str], Path]
PLACES = {"all there": {}, "experts here": {"n_cpu_moe": -1}, "one block's experts here": {"n_cpu_moe": 1}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("quantization", ["F32", "Q4_K_M"])
def test_counts_are_those_of_the_cpu(
    model_file: ModelFile, documents: list[list[int]], family: str, quantization: str, place: str
) -> None:
    """A GPU rounds activations in other places: near-ties of random weights fall to the other side."""
    path = model_file(family, quantization)
    profiles = []
    for options in ({"n_gpu_layers": 0}, PLACES[place]):
        with coe.Model(path, n_ctx=128, n_batch=64, n_sequences=16, **options) as model:
            profiles.append(coe.profile(model, documents, stats="contribution"))
    here, there = profiles
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
    profiles = []
    for n_gpu_layers in (0, -1):
        with coe.Model(path, n_ctx=128, n_batch=128, n_gpu_layers=n_gpu_layers) as model:
            profiles.append(coe.profile(model, documents[:2], stats="contribution"))
    here, there = profiles
    assert here.n_tokens == there.n_tokens
    assert (there.histograms.sum(axis=(1, 2)) == here.histograms.sum(axis=(1, 2))).all()
    moved = np.abs(here.histograms - there.histograms).sum() / 2
    assert moved <= 0.05 * here.histograms.sum()
    np.testing.assert_allclose(there.weight_sum.sum(), here.weight_sum.sum(), rtol=1e-2)
    for name in ("norm_sum", "weighted_norm_sum"):
        ours, theirs = getattr(there.outputs, name), getattr(here.outputs, name)
        assert np.abs(ours - theirs).sum() <= 0.05 * theirs.sum()
    if not ARCHITECTURES[row].refused:
        check_live_mask(path, tmp_path / "specialist.gguf", max(TOLERANCE.get(row, 0), 1e-3), there={}, here={})


def test_trained_weights_agree() -> None:
    """The demo's model, whose routers are sure of themselves."""
    documents = [str(document.content) for document in demo.corpus("python", "profile").documents[:20]]
    profiles = []
    for n_gpu_layers in (0, -1):
        with coe.Model(demo.MODEL, n_sequences=16, n_gpu_layers=n_gpu_layers) as model:
            profiles.append(coe.profile(model, documents, stats="contribution"))
    here, there = profiles
    moved = np.abs(here.histograms - there.histograms).sum() / 2
    assert moved <= 0.01 * here.histograms.sum()
    for name in ("norm_sum", "weighted_norm_sum"):
        ours, theirs = getattr(there.outputs, name), getattr(here.outputs, name)
        assert np.abs(ours - theirs).sum() <= 0.01 * theirs.sum()
    for method in coe.METHODS:
        masks = [coe.build_mask(profile, 16, method=method) for profile in profiles]
        assert sum(overlap.shared for overlap in coe.compare(*masks)) >= 0.95 * 16 * len(here.layers)


def test_a_live_mask_acts_there(model_file: ModelFile, tmp_path: Path, family: str) -> None:
    """The parent masked on the GPU is the specialist there."""
    most = max(TOLERANCE.get(family, 1e-5), 1e-3)
    check_live_mask(model_file(family, "F32"), tmp_path / "specialist.gguf", most, there={}, here={})
