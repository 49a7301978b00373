"""Imported counts and masks, applied to models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.imported_files import histograms, imatrix, torch_save

import coe_native as coe
from coe_native.importers.import_file import import_file

ModelFile = Callable[[str, str], Path]


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_counts_become_a_profile(tmp_path: Path, model_file: ModelFile, dtype: type) -> None:
    counts = histograms()
    path = torch_save(tmp_path / "x.pt", {"histograms": counts.astype(dtype), "note": "of nobody"})
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for model in (None, moe):
        profile = import_file(path, model=model)
        assert isinstance(profile, coe.RoutingProfile)
        profile.save(tmp_path / "p.gguf")
        profile = coe.RoutingProfile.load(tmp_path / "p.gguf")
        np.testing.assert_array_equal(profile.histograms, counts)
        assert (profile.n_tokens, profile.top_k, profile.layers) == (50, 4, (0, 1, 2))
        with pytest.raises(coe.InputError, match=r"--method.*rank-weighted.*frequency"):
            coe.score(profile)
        mask = coe.build_mask(profile, 8, method="rank-weighted")
        mask.save(tmp_path / "m.json")
        coe.prune(moe.path, coe.ExpertMask.load(tmp_path / "m.json"), tmp_path / "out.gguf", force=True)
    with pytest.raises(coe.InputError, match=r"\b3 layers"):
        import_file(path, model=coe.MoeModel(model_file("deepseek2", "F32")))


@pytest.mark.parametrize(
    "form",
    [
        lambda kept: [np.array(row) for row in kept],
        lambda kept: [np.array(row[::-1], np.int32) for row in kept],
        lambda kept: {str(layer): np.array(row) for layer, row in enumerate(kept)},
        lambda kept: {"mask": [list(row) for row in kept], "keep": 4},
        lambda kept: np.array([[expert in row for expert in range(16)] for row in kept]),
        lambda kept: [np.array([expert in row for expert in range(16)]) for row in kept],
    ],
)
def test_masks_are_imported(tmp_path: Path, model_file: ModelFile, form: Callable[[Any], Any]) -> None:
    kept = [(0, 3, 5, 15), (1, 2, 3, 4), (0, 1, 14, 15)]
    path = torch_save(tmp_path / "m.pt", form(kept))
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for mask in (import_file(path, model=moe), import_file(path, n_experts=16)):
        assert isinstance(mask, coe.ExpertMask)
        assert list(mask.kept.values()) == kept
        assert (mask.keep, mask.n_experts) == (4, 16)
        mask.save(tmp_path / "m.json")
        with coe.Model(moe.path, n_ctx=64, n_threads=1) as model:
            model.apply(coe.ExpertMask.load(tmp_path / "m.json"))


def test_counts_of_imatrix_become_a_profile(tmp_path: Path, model_file: ModelFile) -> None:
    expected = histograms().sum(axis=2)
    path = imatrix(tmp_path / "i.gguf", {layer: row.astype(np.float32) for layer, row in enumerate(expected)}, 50)
    moe = coe.MoeModel(model_file("qwen3moe", "F32"))
    for model in (None, moe):
        profile = import_file(path, model=model)
        assert isinstance(profile, coe.RoutingProfile)
        profile.save(tmp_path / "p.gguf")
        profile = coe.RoutingProfile.load(tmp_path / "p.gguf")
        np.testing.assert_array_equal(profile.counts, expected)
        assert (profile.n_tokens, profile.top_k, profile.has_ranks, profile.has_weights) == (50, 4, False, False)
        np.testing.assert_array_equal(coe.score(profile, "frequency"), expected / 50)
        assert np.isinf(profile.mean_rank).all()
        for method in ("utility", "rank-weighted"):
            with pytest.raises(coe.InputError, match="--method frequency"):
                coe.score(profile, method)
        mask = coe.build_mask(profile, 8, method="frequency")
        assert not mask.swaps
        assert (profile + profile).n_tokens == 100
        coe.prune(moe.path, mask, tmp_path / "out.gguf", force=True)
