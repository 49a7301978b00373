"""How much a kind of text needs each expert: one short function a method, found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.routing_profile import RoutingProfile

Scores = NDArray[np.float64]
Formula = Callable[[RoutingProfile], Scores]


class _Method(NamedTuple):
    """A formula, and whether it needs the choices' weights, or their ranks."""

    formula: Formula
    weights: bool
    ranks: bool


_METHODS: dict[str, _Method] = {}


def _method(name: str, *, weights: bool = False, ranks: bool = False) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        _METHODS[name] = _Method(formula, weights, ranks)
        return formula

    return register


@_method("utility", weights=True)
def utility(profile: RoutingProfile) -> Scores:
    """``sum over r of histograms/N * weight_sum/max(histograms, 1)``: how often an expert is chosen at a
    rank, times the mean weight that it then has. Equal to ``sum over r of weight_sum / N``. N: the tokens that the
    layer has seen."""
    frequency = profile.histograms / _tokens(profile)[:, :, np.newaxis]
    mean_weight = profile.weight_sum / np.maximum(profile.histograms, 1)
    return np.asarray((frequency * mean_weight).sum(axis=2))


@_method("rank-weighted", ranks=True)
def rank_weighted(profile: RoutingProfile) -> Scores:
    """``sum over r of (k - r) / (k (k + 1) / 2) * histograms``, with the layer's own k: choices weighted by
    rank, 8/36 … 1/36 for k = 8, as the published Qwen3.5 specialists used it."""
    k = profile.layer_top_k[:, np.newaxis]
    rank_weights = np.maximum(k - np.arange(profile.top_k), 0) / (k * (k + 1) / 2)
    return np.asarray(np.einsum("ler,lr->le", profile.histograms, rank_weights))


@_method("frequency")
def frequency(profile: RoutingProfile) -> Scores:
    """``sum over r of histograms / N``: the share of tokens that choose an expert."""
    return np.asarray(profile.counts / _tokens(profile))


def _tokens(profile: RoutingProfile) -> Scores:
    """The tokens that each layer has seen, [layer, 1]."""
    return np.array(profile.layer_tokens, np.float64)[:, np.newaxis]


def shares(values: Scores) -> Scores:
    """Each row as shares of its sum, [layer, expert]; a row whose sum is 0 stays as it is."""
    totals = values.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(values, totals, out=np.zeros(values.shape), where=totals != 0))


METHODS = tuple(_METHODS)
COMBINATIONS = ("sum", "max")
"""How the scores of several domains become one."""


def score(profile: RoutingProfile, method: str = "utility") -> Scores:
    """Scores of all experts by a method of METHODS, float64 [layer, expert]; higher is more needed.

    Raises InputError for an unknown method, for a profile without tokens, and for one that does not know what the
    method needs.
    """
    if method not in _METHODS:
        raise InputError(f"there is no scoring method {method!r}; choose one of {', '.join(METHODS)}")
    if profile.n_tokens == 0:
        raise InputError("the profile has seen no tokens, so there is nothing to score")
    unseen = [block for block, seen in zip(profile.layers, profile.layer_tokens, strict=True) if seen == 0]
    if unseen:
        raise InputError(
            f"{profile.place}: blocks {unseen} have seen no tokens, for nobody asked for the outputs behind them; "
            "run saved text of the same kind with `coe-native profile`, and merge both"
        )
    wanted = _METHODS[method]
    for needed, known, what in (
        (wanted.weights, profile.has_weights, "weights"),
        (wanted.ranks, profile.has_ranks, "ranks"),
    ):
        if needed and not known:
            others = "rank-weighted or frequency" if profile.has_ranks else "frequency"
            raise InputError(f"{profile.place}: counts choices without their {what}; use --method {others}")
    return wanted.formula(profile)
