"""Build a mask from profiles, by three passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask, Swap
from coe_native.routing.profile import RoutingProfile, not_of_one_model
from coe_native.routing.scores import COMBINATIONS, Scores, score, shares


@dataclass
class _Layer:
    """The mask of one layer while the passes work on it."""

    block: int
    scores: list[float]
    mean_rank: list[float]
    structural: set[int]
    kept: set[int]
    groups: list[range]
    swaps: list[Swap] = field(default_factory=list)
    unplaced: list[tuple[int, int]] = field(default_factory=list)

    def outsiders(self, scores: list[float]) -> list[int]:
        """Experts outside the mask, the highest of `scores` first, ties to the lower index."""
        return sorted(set(range(len(scores))) - self.kept, key=lambda expert: (-scores[expert], expert))

    def weakest_beside(self, incoming: int, protected: frozenset[int] | set[int] = frozenset()) -> int | None:
        """The kept expert of an outsider's own group to give up first: lowest domain score, then worst mean
        rank, then higher index."""
        group = next(group for group in self.groups if incoming in group)
        candidates = self.kept.intersection(group) - self.structural - protected
        return min(candidates, key=lambda e: (self.scores[e], -self.mean_rank[e], -e), default=None)

    def swap(self, incoming: int, outgoing: int, stage: int, scores: list[float]) -> None:
        self.kept.remove(outgoing)
        self.kept.add(incoming)
        self.swaps.append(Swap(self.block, incoming, outgoing, stage, scores[incoming], scores[outgoing]))

    def whitelist_structural(self) -> None:
        """Pass 2: each structural expert outside takes the place of the weakest one inside."""
        for expert in self.outsiders(self.scores):
            if expert in self.structural:
                outgoing = self.weakest_beside(expert)
                if outgoing is None:
                    self.unplaced.append((self.block, expert))
                else:
                    self.swap(expert, outgoing, 2, self.scores)

    def arbitrate_reasoning(self, reasoning: list[float], most: int) -> None:
        """Pass 3: outsiders that reasoning needs more than the domain needs its weakest expert. Those that
        came in stay in: their domain scores are low by nature, and each would be the next to leave."""
        came_in: set[int] = set()
        for _ in range(most):
            for incoming in self.outsiders(reasoning):
                outgoing = self.weakest_beside(incoming, protected=came_in)
                if outgoing is not None and reasoning[incoming] > reasoning[outgoing]:
                    self.swap(incoming, outgoing, 3, reasoning)
                    came_in.add(incoming)
                    break
            else:
                return


@dataclass(frozen=True)
class _Evidence:
    """What the passes go by, all [layer, expert]: scores, mean ranks, and which experts are structural."""

    scores: Scores
    mean_rank: Scores
    structural: NDArray[np.bool_]


def _evidence(
    profiles: Sequence[RoutingProfile], method: str, combine: str, structural_rank: float, structural_min: int
) -> _Evidence:
    """Of one profile, or of several domains: then the scores of each are shares of its layers' sums first, so that
    no domain counts more for having more text, and added up, or the largest is taken, so that an expert stays when
    any domain needs it. What is structural in one domain is so in all."""
    ranks = np.array([profile.mean_rank for profile in profiles])
    often = np.array([profile.counts >= max(structural_min, 1) for profile in profiles])
    structural = ((ranks < structural_rank) & often).any(axis=0)
    scores = [score(profile, method) for profile in profiles]
    if len(profiles) == 1:
        return _Evidence(scores[0], ranks[0], structural)
    normalised = np.array([shares(of_one) for of_one in scores])
    combined = normalised.sum(axis=0) if combine == "sum" else normalised.max(axis=0)
    return _Evidence(combined, ranks.min(axis=0), structural)


def build_mask(
    profile: RoutingProfile | Sequence[RoutingProfile],
    keep: int,
    *,
    method: str = "utility",
    combine: str = "sum",
    structural: bool = True,
    structural_rank: float = 2.0,
    structural_min: int = 10,
    reasoning: RoutingProfile | None = None,
    reasoning_swaps: int = 3,
) -> ExpertMask:
    """The mask that keeps `keep` experts in each layer, by three passes, layer by layer.

    1. The experts with the highest score by `method`; ties go to the lower index.
    2. With `structural`: experts of mean rank below `structural_rank`, chosen at least `structural_min` times,
       come in for the non-structural ones with the lowest score.
    3. With a `reasoning` profile: up to `reasoning_swaps` experts a layer that score higher there come in for
       the non-structural ones with the lowest domain score.

    Several profiles are of several domains that one specialist is for: their scores are normalised, each layer's
    to a sum of 1, and combined by ``sum`` or ``max``; what is structural in any of them is so for the mask.

    Where experts lie in groups (RouterShape), each group keeps as many, and swaps stay within a group.

    A pure function of its arguments. Raises InputError where llama.cpp could not run `keep` experts (see
    `RouterShape.check_keep`), or where the two profiles are of different models.
    """
    profiles = [profile] if isinstance(profile, RoutingProfile) else list(profile)
    if not profiles or combine not in COMBINATIONS:
        raise InputError(f"a mask needs profiles, combined by {' or '.join(COMBINATIONS)}, not {combine!r}")
    first = profiles[0]
    shape = first.router_shape
    shape.check_keep(keep)
    if not 0 <= structural_rank < float("inf"):
        raise InputError(f"the structural rank must be a number from 0 on, not {structural_rank}")
    for other in (*profiles, *(() if reasoning is None else (reasoning,))):
        if (other.fingerprint, other.layers, other.router_shape) != (first.fingerprint, first.layers, shape):
            raise InputError(
                f"{other.place}: {not_of_one_model(first.place, first.fingerprint, other.fingerprint)}"
            )
    evidence = _evidence(profiles, method, combine, structural_rank, structural_min)
    reasoning_scores = None if reasoning is None else score(reasoning, method)
    layers = []
    for index, block in enumerate(first.layers):
        layer = _Layer(
            block,
            evidence.scores[index].tolist(),
            evidence.mean_rank[index].tolist(),
            set(np.flatnonzero(evidence.structural[index]).tolist()) if structural else set(),
            set(shape.best(evidence.scores[index], keep)),
            shape.groups(),
        )
        layer.whitelist_structural()
        if reasoning_scores is not None:
            layer.arbitrate_reasoning(reasoning_scores[index].tolist(), reasoning_swaps)
        layers.append(layer)
    return ExpertMask(
        first.architecture,
        first.fingerprint,
        first.n_experts,
        keep,
        {layer.block: tuple(sorted(layer.kept)) for layer in layers},
        tuple(swap for layer in layers for swap in layer.swaps),
        tuple(pair for layer in layers for pair in layer.unplaced),
        {
            "model": first.model_name,
            "tokens": sum(domain.n_tokens for domain in profiles),
            "corpora": [corpus.as_json() for domain in profiles for corpus in domain.corpora],
            **({"domains": len(profiles), "combine": combine} if len(profiles) > 1 else {}),
            "method": method,
            "structural": structural,
            "structural_rank": structural_rank,
            "structural_min": structural_min,
            "reasoning": None if reasoning is None else [corpus.as_json() for corpus in reasoning.corpora],
            "reasoning_swaps": reasoning_swaps,
        },
        first.place,
    )
