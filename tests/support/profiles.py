"""Routing profiles that need no model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

import coe_native as coe

TOP_K = 3
"""Experts that a token chooses in a made-up profile."""


def make_profile(
    seed: int,
    n_layers: int = 2,
    n_experts: int = 8,
    n_tokens: int = 60,
    skew: float = 1.0,
    groups: tuple[int, int] = (1, 1),
    outputs: bool = True,
) -> Any:
    """Make a profile of random choices. Coarse weights and few tokens give plenty of ties."""
    generator = np.random.default_rng(seed)
    histograms = np.zeros((n_layers, n_experts, TOP_K), np.int64)
    weight_sum = np.zeros((n_layers, n_experts, TOP_K))
    norms = np.zeros((2, n_layers, n_experts))
    popularity = generator.dirichlet(np.full(n_experts, skew)) + 1e-9
    for layer in range(n_layers):
        for _ in range(n_tokens):
            chosen = generator.choice(n_experts, TOP_K, replace=False, p=popularity / popularity.sum())
            weights = np.sort(generator.integers(1, 4, TOP_K) / 4)[::-1]
            for rank, (expert, weight) in enumerate(zip(chosen, weights, strict=True)):
                histograms[layer, expert, rank] += 1
                weight_sum[layer, expert, rank] += weight
                norm = (1 + expert) / 8
                norms[:, layer, expert] += norm, weight * norm
    layers = tuple(range(1, 2 * n_layers, 2))
    return coe.RoutingProfile(
        "test",
        "made up",
        "f" * 64,
        layers,
        n_tokens,
        histograms,
        weight_sum,
        (),
        groups[0],
        groups[1],
        outputs=coe.OutputNorms(*norms) if outputs else None,
    )


def make_live_profile(layer_tokens: tuple[int, ...]) -> coe.RoutingProfile:
    """Make the profile of a live run in which the layers saw these numbers of tokens."""
    whole = make_profile(4, outputs=False)
    random = np.random.default_rng(1)
    histograms = np.zeros_like(whole.histograms)
    for layer, n_tokens in enumerate(layer_tokens):
        for _ in range(n_tokens):
            chosen = random.choice(whole.n_experts, whole.top_k, replace=False)
            histograms[layer, chosen, np.arange(whole.top_k)] += 1
    return replace(
        whole,
        n_tokens=max(layer_tokens),
        histograms=histograms,
        weight_sum=histograms * 0.25,
        weight_sum_rest=np.zeros(()),
        layer_tokens=layer_tokens,
    )
