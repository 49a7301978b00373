"""Masks in the form of an engine that drops experts as it loads a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coe_native.errors import InputError
from coe_native.files.atomic import check_target, replacing
from coe_native.masks.expert_mask import ExpertMask


def export_mask(mask: ExpertMask, out: str | Path, *, force: bool = False) -> dict[str, Any]:
    """Write a mask as the list of experts that vLLM-Ascend keeps, and return the settings that go with it.

    The file has JSON lines, ``{"LAYER": [expert, ...]}``. The settings are for ``additional_config``. vLLM-Ascend
    keeps the first ``int(n_experts * (1 - expert_prune_ratio))`` experts of each list, which are those of the
    mask. The source of this is its pull request 12525, which does so for Qwen3-MoE models.

    Args:
        mask: The mask.
        out: The file to write.
        force: Replace an existing file.

    Raises:
        InputError: The mask is of another architecture, or `out` exists.
    """
    if mask.is_tied and mask.architecture != "qwen3moe":
        raise InputError(
            f"{mask.place}: vLLM-Ascend drops experts of Qwen3-MoE models only, and this mask is for "
            f"{mask.architecture}; prune the checkpoint instead"
        )
    check_target(Path(out), force=force)
    lines = (json.dumps({str(layer): list(kept)}) for layer, kept in sorted(mask.kept.items()))
    with replacing(Path(out)) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return {
        "expert_list_file": str(Path(out).absolute()),
        "expert_prune_ratio": _prune_ratio(mask.keep, mask.n_experts),
    }


def _prune_ratio(keep: int, n_experts: int) -> float:
    """Return a share of dropped experts with which rounding leaves `keep`."""
    exact = (n_experts - keep) / n_experts
    return exact if int(n_experts * (1.0 - exact)) == keep else (n_experts - keep - 0.5) / n_experts
