"""How much a kind of text needs each expert: one short function a method, found by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.routing_profile import RoutingProfile

Scores = NDArray[np.float64]
_METHODS: dict[str, Callable[[RoutingProfile], Scores]] = {}


def _method(name: str) -> Callable[[Callable[[RoutingProfile], Scores]], Callable[[RoutingProfile], Scores]]:
    def register(function: Callable[[RoutingProfile], Scores]) -> Callable[[RoutingProfile], Scores]:
        _METHODS[name] = function
        return function

    return register


@_method("utility")
def utility(profile: RoutingProfile) -> Scores:
    """``sum over r of histograms/N * weight_sum/max(histograms, 1)``: how often an expert is chosen at a
    rank, times the mean weight that it then has. Equal to ``sum over r of weight_sum / N``."""
    frequency = profile.histograms / profile.n_tokens
    mean_weight = profile.weight_sum / np.maximum(profile.histograms, 1)
    return np.asarray((frequency * mean_weight).sum(axis=2))


@_method("rank-weighted")
def rank_weighted(profile: RoutingProfile) -> Scores:
    """``sum over r of (k - r) / (k (k + 1) / 2) * histograms``, with the layer's own k: choices weighted by
    rank, 8/36 … 1/36 for k = 8, as the published Qwen3.5 specialists used it."""
    k = profile.layer_top_k[:, np.newaxis]
    rank_weights = np.maximum(k - np.arange(profile.top_k), 0) / (k * (k + 1) / 2)
    return np.asarray(np.einsum("ler,lr->le", profile.histograms, rank_weights))


@_method("frequency")
def frequency(profile: RoutingProfile) -> Scores:
    """``sum over r of histograms / N``: the share of tokens that choose an expert."""
    return np.asarray(profile.counts / profile.n_tokens)


METHODS = tuple(_METHODS)


def score(profile: RoutingProfile, method: str = "utility") -> Scores:
    """Scores of all experts by a method of METHODS, float64 [layer, expert]; higher is more needed.

    Raises InputError for an unknown method and for a profile without tokens.
    """
    if method not in _METHODS:
        raise InputError(f"there is no scoring method {method!r}; choose one of {', '.join(METHODS)}")
    if profile.n_tokens == 0:
        raise InputError("the profile has seen no tokens, so there is nothing to score")
    return _METHODS[method](profile)
