"""Score how much a kind of text needs each expert. Each method is one short function, found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """A formula, and whether it needs the router weights, the ranks of choices, or activation norms.

    `removed_by` says by what experts are removed, as the end of a sentence.
    """

    formula: Formula
    removed_by: str
    weights: bool
    ranks: bool
    outputs: bool


_METHODS: dict[str, _Method] = {}


def _method(
    name: str, removed_by: str, *, weights: bool = False, ranks: bool = False, outputs: bool = False
) -> Callable[[Formula], Formula]:
    def register(formula: Formula) -> Formula:
        _METHODS[name] = _Method(formula, removed_by, weights=weights, ranks=ranks, outputs=outputs)
        return formula

    return register


@_method("utility", "by how much weight the router gives them on one kind of text", weights=True)
def utility(profile: RoutingProfile) -> Scores:
    """Score by how often an expert is chosen at each rank, times its mean router weight there.

    ``sum over r of histograms/N * weight_sum/max(histograms, 1)``, with N tokens that the layer has seen. It
    equals ``sum over r of weight_sum / N``.
    """
    frequency = profile.histograms / _tokens(profile)[:, :, np.newaxis]
    mean_weight = profile.weight_sum / np.maximum(profile.histograms, 1)
    return np.asarray((frequency * mean_weight).sum(axis=2))


@_method(
    "rank-weighted", "by how often, and at which rank, the router chooses them on one kind of text", ranks=True
)
def rank_weighted(profile: RoutingProfile) -> Scores:
    """Score by how often an expert is chosen, weighted by rank.

    ``sum over r of (k - r) / (k (k + 1) / 2) * histograms``, with the layer's own k: weights of 8/36 … 1/36
    for k = 8, as for the published Qwen3.5 specialists.
    """
    k = profile.layer_top_k[:, np.newaxis]
    rank_weights = np.maximum(k - np.arange(profile.top_k), 0) / (k * (k + 1) / 2)
    return np.asarray(np.einsum("ler,lr->le", profile.histograms, rank_weights))


@_method("frequency", "by how often the router chooses them on one kind of text")
def frequency(profile: RoutingProfile) -> Scores:
    """Score by the share of tokens that choose an expert: ``sum over r of histograms / N``."""
    return np.asarray(profile.counts / _tokens(profile))


@_method("contribution", "by how much they add to their layer's output on one kind of text", outputs=True)
def contribution(profile: RoutingProfile) -> Scores:
    """Score by how much an expert adds to its layer's output, on average over all tokens.

    ``weighted_norm_sum / N``: the mean of ``w * norm(f)``, the router weight times the activation norm, 0 for
    tokens that do not choose the expert. This is REAP's term, summed instead of averaged, so that it also
    counts how often an expert is needed. The method is our own; ``benchmarks/quality.py`` compares it with
    the others.
    """
    return np.asarray(_outputs(profile).weighted_norm_sum / _tokens(profile))


@_method("reap", "by how much they add to their layer's output for the tokens that choose them", outputs=True)
def reap(profile: RoutingProfile) -> Scores:
    """Score by how much an expert adds to its layer's output, on average over the tokens that choose it.

    ``weighted_norm_sum / max(counts, 1)``: the mean of ``w * norm(f)``, however few tokens there are (REAP:
    Lasby et al., 2025, arXiv 2510.13999).
    """
    return np.asarray(_outputs(profile).weighted_norm_sum / np.maximum(profile.counts, 1))


@_method("ean", "by how large their outputs are on one kind of text", outputs=True)
def ean(profile: RoutingProfile) -> Scores:
    """Score by an expert's mean activation norm over all tokens, whatever its router weight.

    ``norm_sum / N``: the mean of ``norm(f)``, 0 for tokens that do not choose the expert (expert activation
    norm: Jaiswal et al., 2025, arXiv 2504.05586).
    """
    return np.asarray(_outputs(profile).norm_sum / _tokens(profile))


def _outputs(profile: RoutingProfile) -> OutputNorms:
    """Return the activation norms. `score` has checked that they were counted."""
    assert profile.outputs is not None
    return profile.outputs


def _tokens(profile: RoutingProfile) -> Scores:
    """Return the tokens that each layer has seen, [layer, 1]."""
    return np.array(profile.layer_tokens, np.float64)[:, np.newaxis]


def shares(values: Scores) -> Scores:
    """Return each row divided by its sum, [layer, expert]. A row that adds up to 0 is all zeros."""
    totals = values.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(values, totals, out=np.zeros(values.shape), where=totals != 0))


METHODS = tuple(_METHODS)


def reason_for_removal(method: str) -> str:
    """Return by what a method removes experts, as the end of a sentence; of unknown methods too."""
    return _METHODS[method].removed_by if method in _METHODS else "by an expert mask"


def needs_outputs(method: str) -> bool:
    """Return whether a method needs a profile with ``stats="contribution"``.

    Raises:
        InputError: There is no such method.
    """
    return _named(method).outputs


BEST_METHOD, FALLBACK_METHOD = "contribution", "utility"
"""The default method, and that for profiles without activation norms (benchmarks/quality.py has the figures)."""

COMBINATIONS = ("sum", "max")
"""How the scores of several domains become one."""


def default_method(profiles: Iterable[RoutingProfile]) -> str:
    """Return the method for profiles if none is named: the best of those that all of them can be scored by."""
    has_norms = all(profile.outputs is not None for profile in profiles)
    return BEST_METHOD if has_norms else FALLBACK_METHOD


def score(profile: RoutingProfile, method: str | None = None) -> Scores:
    """Return the scores of all experts, float64 [layer, expert]. Higher means more needed.

    Args:
        profile: The profile.
        method: How experts are scored: one of METHODS; None: `default_method`.

    Raises:
        InputError: There is no such method, the profile or one of its layers has no tokens, or the profile
            lacks what the method needs.
    """
    method = method or default_method([profile])
    check_method(profile, method)
    if profile.n_tokens == 0:
        raise InputError("the profile has no tokens, so experts cannot be scored")
    unseen = [block for block, seen in zip(profile.layers, profile.layer_tokens, strict=True) if seen == 0]
    if unseen:
        raise InputError(
            f"{profile.place}: blocks {unseen} saw no tokens because their outputs were not requested; "
            "profile saved text of the same kind with `coe-native profile`, and merge both profiles"
        )
    return _named(method).formula(profile)


def _named(method: str) -> _Method:
    if method not in _METHODS:
        raise InputError(f"there is no scoring method {method!r}; choose one of {', '.join(METHODS)}")
    return _METHODS[method]


def supports_method(profile: RoutingProfile, method: str) -> bool:
    """Return whether a profile has what a method needs."""
    try:
        check_method(profile, method)
    except InputError:
        return False
    return True


def check_method(profile: RoutingProfile, method: str) -> None:
    """Check that a profile has what a method needs.

    Raises:
        InputError: It does not, or there is no such method.
    """
    wanted = _named(method)
    if wanted.outputs and profile.outputs is None:
        raise InputError(
            f"{profile.place}: has no activation norms, which {method} needs; profile with --stats contribution, "
            "or use another --method"
        )
    for needed, known, what in (
        (wanted.weights, profile.has_weights, "weights"),
        (wanted.ranks, profile.has_ranks, "ranks"),
    ):
        if needed and not known:
            others = "rank-weighted or frequency" if profile.has_ranks else "frequency"
            raise InputError(f"{profile.place}: has choices without their {what}; use --method {others}")
