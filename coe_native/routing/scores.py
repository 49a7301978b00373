"""How much a kind of text needs each expert: one short function a method, found by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError

if TYPE_CHECKING:
    from coe_native.routing.output_norms import OutputNorms
    from coe_native.routing.profile import RoutingProfile

Scores = NDArray[np.float64]
Formula = Callable[["RoutingProfile"], Scores]


class _Method(NamedTuple):
    """A formula, and whether it needs the choices' weights, their ranks, or what the experts put out."""

    formula: Formula
    weights: bool
    ranks: bool
    outputs: bool


_METHODS: dict[str, _Method] = {}


def _method(
    name: str, *, weights: bool = False, ranks: bool = False, outputs: bool = False
) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        _METHODS[name] = _Method(formula, weights, ranks, outputs)
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


@_method("contribution", outputs=True)
def contribution(profile: RoutingProfile) -> Scores:
    """``weighted_norm_sum / N``: the mean over all tokens of ``w * norm(f)``, the router's weight times the length
    of what the expert put out, 0 where it was not chosen: how much it adds to the layer's output. REAP's term,
    summed instead of averaged, so that it counts too how often an expert is needed; our own, compared with the
    others by ``benchmarks/quality.py``."""
    return np.asarray(_outputs(profile).weighted_norm_sum / _tokens(profile))


@_method("reap", outputs=True)
def reap(profile: RoutingProfile) -> Scores:
    """``weighted_norm_sum / max(counts, 1)``: the mean over an expert's own tokens of ``w * norm(f)``, however few
    they are (REAP: Lasby et al., 2025, arXiv 2510.13999)."""
    return np.asarray(_outputs(profile).weighted_norm_sum / np.maximum(profile.counts, 1))


@_method("ean", outputs=True)
def ean(profile: RoutingProfile) -> Scores:
    """``norm_sum / N``: the mean over all tokens of ``norm(f)``, 0 where the expert was not chosen, whatever
    weight the router gave it (expert activation norm: Jaiswal et al., 2025, arXiv 2504.05586)."""
    return np.asarray(_outputs(profile).norm_sum / _tokens(profile))


def _outputs(profile: RoutingProfile) -> OutputNorms:
    """What the experts put out; `score` has seen that it is known."""
    assert profile.outputs is not None
    return profile.outputs


def _tokens(profile: RoutingProfile) -> Scores:
    """The tokens that each layer has seen, [layer, 1]."""
    return np.array(profile.layer_tokens, np.float64)[:, np.newaxis]


def shares(values: Scores) -> Scores:
    """Each row as shares of its sum, [layer, expert]; a row whose sum is 0 stays as it is."""
    totals = values.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(values, totals, out=np.zeros(values.shape), where=totals != 0))


METHODS = tuple(_METHODS)


def needs_outputs(method: str) -> bool:
    """Whether a method needs a profile with ``stats="contribution"``. Raises InputError for an unknown one."""
    return _named(method).outputs


DEFAULT_METHOD = "utility"

COMBINATIONS = ("sum", "max")
"""How the scores of several domains become one."""


def score(profile: RoutingProfile, method: str = DEFAULT_METHOD) -> Scores:
    """Scores of all experts by a method of METHODS, float64 [layer, expert]; higher is more needed.

    Raises InputError for an unknown method, for a profile without tokens, and for one that does not know what the
    method needs.
    """
    check_method(profile, method)
    if profile.n_tokens == 0:
        raise InputError("the profile has seen no tokens, so there is nothing to score")
    unseen = [block for block, seen in zip(profile.layers, profile.layer_tokens, strict=True) if seen == 0]
    if unseen:
        raise InputError(
            f"{profile.place}: blocks {unseen} have seen no tokens, for nobody asked for the outputs behind them; "
            "run saved text of the same kind with `coe-native profile`, and merge both"
        )
    return _named(method).formula(profile)


def _named(method: str) -> _Method:
    if method not in _METHODS:
        raise InputError(f"there is no scoring method {method!r}; choose one of {', '.join(METHODS)}")
    return _METHODS[method]


def supports_method(profile: RoutingProfile, method: str) -> bool:
    """Whether a profile supports_method what a method needs."""
    try:
        check_method(profile, method)
    except InputError:
        return False
    return True


def check_method(profile: RoutingProfile, method: str) -> None:
    """Raises InputError for an unknown method, and for a profile that does not know what the method needs."""
    wanted = _named(method)
    if wanted.outputs and profile.outputs is None:
        raise InputError(
            f"{profile.place}: does not know what the experts put out, which {method} needs; profile with --stats "
            "contribution, or use another --method"
        )
    for needed, known, what in (
        (wanted.weights, profile.has_weights, "weights"),
        (wanted.ranks, profile.has_ranks, "ranks"),
    ):
        if needed and not known:
            others = "rank-weighted or frequency" if profile.has_ranks else "frequency"
            raise InputError(f"{profile.place}: counts choices without their {what}; use --method {others}")
