"""Measure how unevenly a kind of text uses a layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import Scores, shares


def routed_shares(profile: RoutingProfile) -> Scores:
    """Return the share of each layer's router weight that goes to each expert, float64 [layer, expert].

    For a profile without weights, it is the share of choices. Each row adds up to 1; without tokens, all are
    0.
    """
    routed = profile.weight_sum.sum(axis=2) if profile.has_weights else profile.counts.astype(np.float64)
    return shares(routed)


@dataclass(frozen=True)
class Concentration:
    """How unevenly one layer's experts are used.

    Attributes:
        layer: The block.
        entropy: ``-sum(p log p) / log(n)`` over the experts' shares p: 1 if all are equal, 0 if one expert
            has all (Shannon, 1948).
        gini: 0 if all shares are equal, ``1 - 1/n`` if one expert has all (Gini, 1912).
        experts_for_80: The smallest number of experts that have 80 % of the weight together.
    """

    layer: int
    entropy: float
    gini: float
    experts_for_80: int


def concentration(profile: RoutingProfile) -> list[Concentration]:
    """Return the concentration of each layer."""
    routed = routed_shares(profile)
    n = profile.n_experts
    logs = np.log(routed, out=np.zeros_like(routed), where=routed > 0)
    entropy = -(routed * logs).sum(axis=1) / np.log(n)
    # Half the mean difference of two experts, divided by the mean; for sorted values, this is one sum.
    gini = (np.sort(routed, axis=1) * (2 * np.arange(1, n + 1) - n - 1)).sum(axis=1) / n
    needed = 1 + (coverage(profile) < 0.8 - 1e-12).sum(axis=1)
    return [
        Concentration(layer=layer, entropy=float(h), gini=float(g), experts_for_80=int(count))
        for layer, h, g, count in zip(profile.layers, entropy, gini, needed, strict=True)
    ]


def coverage(profile: RoutingProfile) -> Scores:
    """Return the share of each layer's router weight that its 1, 2, … most used experts have together.

    Returns:
        float64 [layer, number of experts - 1].
    """
    return np.asarray(np.cumsum(-np.sort(-routed_shares(profile), axis=1), axis=1))
