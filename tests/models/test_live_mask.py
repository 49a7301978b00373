"""A pruned file and a live-masked parent are the same function: the strongest test of surgery and mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.distributions import divergence, log_softmax, logits
from support.masks import TOLERANCE, unused_experts

import coe_native as coe

ModelFile = Callable[[str, str], Path]
ProfileOf = Callable[..., coe.RoutingProfile]


@pytest.mark.parametrize("keep", [4, 8, 15])
def test_pruned_equals_live_masked(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    documents: list[list[int]],
    family: str,
    keep: int,
) -> None:
    parent = model_file(family, "F32")
    mask = unused_experts(profile_of(family), keep)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    whole = logits(parent, documents[4])
    masked = logits(parent, documents[4], mask)
    pruned = logits(out, documents[4])
    scale = np.abs(whole).max()
    assert np.abs(pruned - masked).max() <= TOLERANCE.get(family, 1e-5) * scale
    assert np.abs(whole - masked).max() > 1e-2 * scale, "the mask must change the output, or equality says nothing"


@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_K_M"])
def test_pruned_is_close_to_live_masked_when_quantised(
    tmp_path: Path,
    model_file: ModelFile,
    profile_of: ProfileOf,
    documents: list[list[int]],
    family: str,
    quantization: str,
) -> None:
    """llama.cpp rounds activations to 8 bits, so a last bit can grow: compare distributions. What the mask
    changes is the yardstick."""
    parent = model_file(family, quantization)
    mask = unused_experts(profile_of(family, quantization), 8)
    out = coe.prune(parent, mask, tmp_path / "out.gguf")
    masked = log_softmax(logits(parent, documents[4], mask))
    pruned = log_softmax(logits(out, documents[4]))
    whole = log_softmax(logits(parent, documents[4]))
    assert divergence(masked, pruned) < 0.01
    assert divergence(whole, pruned) > 20 * divergence(masked, pruned)


def test_a_masked_router_chooses_kept_experts_only(
    model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]], family: str
) -> None:
    """Selection bias or not: a profile under the mask has no choice outside it."""
    mask = unused_experts(profile_of(family), 6)
    with coe.Model(model_file(family, "F32"), n_ctx=128, n_threads=1) as model:
        model.apply(mask)
        masked = coe.profile(model, documents)
        model.clear_mask()
        unmasked = coe.profile(model, documents)
    for index, block in enumerate(masked.layers):
        assert masked.counts[index][mask.dropped(block)].sum() == 0
        assert unmasked.counts[index][mask.dropped(block)].sum() > 0


def test_clearing_a_mask_gives_the_parent_back(
    model_file: ModelFile, profile_of: ProfileOf, documents: list[list[int]]
) -> None:
    with coe.Model(model_file("olmoe", "F32"), n_ctx=128, n_threads=1) as model:
        before = model.logits(documents[0])
        model.apply(unused_experts(profile_of("olmoe"), 4))
        assert np.abs(model.logits(documents[0]) - before).max() > 0.1
        model.clear_mask()
        np.testing.assert_array_equal(model.logits(documents[0]), before)


def test_a_mask_of_another_model_is_refused(model_file: ModelFile, profile_of: ProfileOf) -> None:
    with (
        coe.Model(model_file("olmoe", "F32"), n_ctx=128, n_threads=1) as model,
        pytest.raises(coe.InputError, match="model"),
    ):
        model.apply(unused_experts(profile_of("llama"), 8))
