"""Masks that change a model's output much, and a check of live masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import coe_native as coe

# ggml's CPU GELU looks values up in a table of 16-bit floats, so a difference in the last bit of a router weight
# can grow to one in the eleventh. The other activations are computed.
TOLERANCE = {"gemma4": 2e-4, "nomic-bert-moe": 2e-4}
"""Largest difference of logits, as a share of the largest logit, by architecture; 1e-5 for all others."""


def unused_experts(profile: coe.RoutingProfile, keep: int) -> coe.ExpertMask:
    """Return the mask that changes the output most: it keeps the least used experts, equally many per group."""
    least = [profile.router_shape.best(-counts.astype(float), keep) for counts in profile.counts]
    return coe.ExpertMask(
        profile.architecture,
        profile.fingerprint,
        profile.n_experts,
        keep,
        {block: tuple(kept) for block, kept in zip(profile.layers, least, strict=True)},
    )


def check_live_mask(
    parent: Path,
    out: Path,
    most: float,
    *,
    masked_options: dict[str, Any],
    pruned_options: dict[str, Any],
    near_ties: float = 0.0,
) -> None:
    """Check that the masked parent computes what the pruned file computes.

    Args:
        parent: The whole model.
        out: Where the pruned file is written.
        most: Largest difference allowed, as a share of the largest logit.
        masked_options: How the parent is loaded.
        pruned_options: How the pruned file is loaded.
        near_ties: Share of the tokens that may differ by more, because a last bit can decide between experts.
    """
    tokens = list(range(40))
    mask = unused_experts(coe.profile(parent, [tokens], n_ctx=64), 8)
    coe.prune(parent, mask, out)
    with coe.Model(out, n_ctx=64, f32_kv=True, **pruned_options) as model:
        expected = model.outputs(tokens)
    with coe.Model(parent, n_ctx=64, f32_kv=True, **masked_options) as model:
        unmasked = model.outputs(tokens)
        model.apply(mask)
        masked = model.outputs(tokens)
    largest = np.abs(expected).max()
    differences = np.abs(masked - expected).max(axis=1)
    assert np.quantile(differences, 1 - near_ties) <= most * largest
    assert np.abs(masked - unmasked).max() > 0.01 * largest
