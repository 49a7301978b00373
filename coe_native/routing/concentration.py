"""How unevenly a kind of text uses a layer's experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import Scores, shares


def routed_shares(profile: RoutingProfile) -> Scores:
    """The share of each layer's routed weight that goes to each expert, [layer, expert]; of its choices, where the
    profile knows no weights. Every row adds up to 1, but for a profile of no tokens: there all are 0."""
    routed = profile.weight_sum.sum(axis=2) if profile.has_weights else profile.counts.astype(np.float64)
    return shares(routed)


@dataclass(frozen=True)
class Concentration:
    """One layer. `entropy`: ``-sum(p log p) / log(n)`` over the experts' shares p, 1 where all get the same and 0
    where one gets all (Shannon, 1948). `gini`: 0 where all get the same, ``1 - 1/n`` where one gets all (Gini,
    1912). `experts_for_80`: the fewest experts that get 80 % of the weight together."""

    layer: int
    entropy: float
    gini: float
    experts_for_80: int


def concentration(profile: RoutingProfile) -> list[Concentration]:
    """The concentration of each MoE layer."""
    routed = routed_shares(profile)
    n = profile.n_experts
    logs = np.log(routed, out=np.zeros_like(routed), where=routed > 0)
    entropy = -(routed * logs).sum(axis=1) / np.log(n)
    # Half the mean difference of two experts, as a share of the mean: over sorted values, one sum does it.
    gini = (np.sort(routed, axis=1) * (2 * np.arange(1, n + 1) - n - 1)).sum(axis=1) / n
    needed = 1 + (coverage(profile) < 0.8 - 1e-12).sum(axis=1)
    return [
        Concentration(layer, float(h), float(g), int(count))
        for layer, h, g, count in zip(profile.layers, entropy, gini, needed, strict=True)
    ]


def coverage(profile: RoutingProfile) -> Scores:
    """The share of each layer's routed weight that the 1, 2, … experts with most of it get together, float64
    [layer, expert]."""
    return np.asarray(np.cumsum(-np.sort(-routed_shares(profile), axis=1), axis=1))
