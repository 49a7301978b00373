"""Masks as other engines read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coe_native as coe
from coe_native.masks.export import _prune_ratio


def experts_that_vllm_ascend_keeps(settings: dict[str, Any], n_experts: int) -> dict[int, list[int]]:
    """Follow the rules of its loader, which takes the first experts of each line's list."""
    ratio = settings["expert_prune_ratio"]
    assert 0 <= ratio < 1
    lines = [json.loads(line) for line in Path(settings["expert_list_file"]).read_text().splitlines()]
    assert all(len(line) == 1 for line in lines)
    return {int(layer): found[: int(n_experts * (1.0 - ratio))] for line in lines for layer, found in line.items()}


@given(st.data())
def test_vllm_ascend_keeps_what_the_mask_keeps(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    n_experts = data.draw(st.integers(1, 512))
    keep = data.draw(st.integers(1, n_experts))
    layers = data.draw(st.sets(st.integers(0, 99), min_size=1, max_size=3))
    kept = {layer: tuple(sorted(data.draw(st.permutations(range(n_experts)))[:keep])) for layer in layers}
    mask = coe.ExpertMask("qwen3moe", "0" * 64, n_experts, keep, kept)
    settings = coe.export_mask(mask, tmp_path_factory.mktemp("export") / "experts.jsonl")
    assert experts_that_vllm_ascend_keeps(settings, n_experts) == {layer: list(e) for layer, e in kept.items()}


def test_every_number_of_experts_survives_the_rounding_of_the_ratio() -> None:
    for n_experts in range(1, 300):
        for keep in range(1, n_experts + 1):
            ratio = _prune_ratio(keep, n_experts)
            assert int(n_experts * (1.0 - ratio)) == keep


def test_outputs_are_not_overwritten(tmp_path: Path) -> None:
    mask = coe.ExpertMask("qwen3moe", "0" * 64, 4, 1, {0: (2,)})
    (tmp_path / "experts.jsonl").write_text("precious")
    with pytest.raises(coe.InputError, match="--force"):
        coe.export_mask(mask, tmp_path / "experts.jsonl")
    coe.export_mask(mask, tmp_path / "experts.jsonl", force=True)
    assert (tmp_path / "experts.jsonl").read_text() == '{"0": [2]}\n'
    other = coe.ExpertMask("gemma4", "0" * 64, 4, 1, {0: (2,)})
    with pytest.raises(coe.InputError, match="Qwen3-MoE models only, and this mask is for gemma4"):
        coe.export_mask(other, tmp_path / "other")
    coe.export_mask(coe.ExpertMask("unknown", "unknown", 4, 1, {0: (2,)}), tmp_path / "untied")
