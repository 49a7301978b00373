"""Masks in the forms of engines that drop experts as they load a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coe_native.errors import InputError
from coe_native.files.atomic import check_target, replacing
from coe_native.masks.expert_mask import ExpertMask

ENGINES = ("vllm-ascend",)


def export_mask(
    mask: ExpertMask, out: str | Path, *, engine: str = "vllm-ascend", force: bool = False
) -> dict[str, Any]:
    """Write a mask in the form that an engine reads, and return the settings that the engine needs with it.

    vllm-ascend: JSON lines, ``{"LAYER": [expert, ...]}``. The settings are for its ``additional_config``. It keeps
    the first ``int(n_experts * (1 - expert_prune_ratio))`` experts of each list, which are those of the mask, and
    does so for Qwen3-MoE models only (its patch of vLLM's qwen3_moe).

    Args:
        mask: The mask.
        out: The file to write.
        engine: One of `ENGINES`.
        force: Replace an existing file.

    Raises:
        InputError: The engine is unknown, or `out` exists.
    """
    if engine not in ENGINES:
        raise InputError(f"no masks can be written for {engine}; choose one of {', '.join(ENGINES)}")
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
