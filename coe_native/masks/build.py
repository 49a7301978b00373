"""Build a mask from profiles, by three passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask, Pass, Swap
from coe_native.masks.options import MaskOptions
from coe_native.routing.profile import RoutingProfile, not_of_one_model
from coe_native.routing.scores import Scores, score, shares


def build_mask(
    profile: RoutingProfile | Sequence[RoutingProfile],
    keep: int,
    *,
    method: str | None = None,
    combine: str = "sum",
    weights: Sequence[float] = (),
    structural: bool | None = None,
    structural_rank: float = 2.0,
    structural_min: int = 10,
    reasoning: RoutingProfile | None = None,
    reasoning_swaps: int = 3,
) -> ExpertMask:
    """Build the mask that keeps `keep` experts in each layer, by three passes, layer by layer.

    1. Keep the experts with the highest scores. Ties go to the lower index.
    2. Structural experts that were dropped replace the non-structural ones with the lowest scores.
    3. With a `reasoning` profile, dropped experts that score higher there replace the non-structural ones with the
       lowest scores.

    Where experts lie in groups (`RouterShape`), each group keeps the same number, and swaps stay within a group.
    The result depends on the arguments alone.

    Args:
        profile: One profile, or one for each domain that the specialist is for. Each domain's scores are then
            divided by their sum in each layer, and combined. An expert that is structural in one domain is
            structural for the mask.
        keep: Experts to keep in each layer.
        method: How experts are scored: one of METHODS; None: ``contribution`` where all profiles have activation
            norms, otherwise ``utility``.
        combine: How the scores of several domains become one: ``sum`` or ``max``.
        weights: What each domain's shares are multiplied with before; empty: 1 for all.
        structural: Whether the second pass runs; None: with methods that score by choices alone.
        structural_rank: Structural experts have a mean rank below this; 0 is always the first choice.
        structural_min: Structural experts were chosen at least this often.
        reasoning: The profile of reasoning text; None: no third pass.
        reasoning_swaps: Largest number of swaps in a layer in the third pass.

    Raises:
        InputError: llama.cpp could not run `keep` experts (`RouterShape.check_keep`), an option is out of range,
            or the profiles are of different models or lack what `method` needs.
    """
    options = MaskOptions(
        keep=keep,
        method=method,
        combine=combine,
        weights=tuple(weights),
        structural=structural,
        structural_rank=structural_rank,
        structural_min=structural_min,
        reasoning=reasoning,
        reasoning_swaps=reasoning_swaps,
    )
    return build(profile, options)


def build(profile: RoutingProfile | Sequence[RoutingProfile], options: MaskOptions) -> ExpertMask:
    """Build a mask by options: see `build_mask`."""
    profiles = [profile] if isinstance(profile, RoutingProfile) else list(profile)
    if not profiles:
        raise InputError("a mask needs one profile or more")
    first = profiles[0]
    first.router_shape.check_keep(options.keep)
    if options.weights and len(options.weights) != len(profiles):
        raise InputError(
            f"there must be a weight for each of {len(profiles)} profiles, not {len(options.weights)}"
        )
    _check_one_model(profiles if options.reasoning is None else [*profiles, options.reasoning])
    options = options.for_profiles(profiles)
    evidence = _find_evidence(profiles, options)
    reasoning = None if options.reasoning is None else score(options.reasoning, options.method)
    layers = []
    for index, block in enumerate(first.layers):
        layer = _Layer(
            block=block,
            scores=evidence.scores[index].tolist(),
            mean_rank=evidence.mean_rank[index].tolist(),
            structural=set(np.flatnonzero(evidence.structural[index]).tolist()) if options.structural else set(),
            kept=set(first.router_shape.best(evidence.scores[index], options.keep)),
            groups=first.router_shape.groups(),
        )
        layer.keep_structural()
        if reasoning is not None:
            layer.keep_for_reasoning(reasoning[index].tolist(), options.reasoning_swaps)
        layers.append(layer)
    return ExpertMask(
        architecture=first.architecture,
        fingerprint=first.fingerprint,
        n_experts=first.n_experts,
        keep=options.keep,
        kept={layer.block: tuple(sorted(layer.kept)) for layer in layers},
        swaps=tuple(swap for layer in layers for swap in layer.swaps),
        unplaced=tuple(pair for layer in layers for pair in layer.unplaced),
        provenance=_provenance(profiles, options),
        place=first.place,
    )


def _check_one_model(profiles: Sequence[RoutingProfile]) -> None:
    first = profiles[0]
    for other in profiles[1:]:
        if (other.fingerprint, other.layers, other.router_shape) != (
            first.fingerprint,
            first.layers,
            first.router_shape,
        ):
            raise InputError(
                f"{other.place}: {not_of_one_model(first.place, first.fingerprint, other.fingerprint)}"
            )


def _provenance(profiles: Sequence[RoutingProfile], options: MaskOptions) -> dict[str, object]:
    reasoning = options.reasoning
    return {
        "model": profiles[0].model_name,
        "tokens": sum(domain.n_tokens for domain in profiles),
        "corpora": [corpus.as_json() for domain in profiles for corpus in domain.corpora],
        **({"domains": len(profiles), "combine": options.combine} if len(profiles) > 1 else {}),
        **({"weights": list(options.weights)} if options.weights else {}),
        "recipe": "published" if options.is_published else "own",
        "method": options.method,
        "structural": options.structural,
        "structural_rank": options.structural_rank,
        "structural_min": options.structural_min,
        "reasoning": None if reasoning is None else [corpus.as_json() for corpus in reasoning.corpora],
        "reasoning_swaps": options.reasoning_swaps,
    }


@dataclass(frozen=True)
class _Evidence:
    """What the passes go by.

    Attributes:
        scores: [layer, expert].
        mean_rank: The same.
        structural: Which experts are structural, the same shape.
    """

    scores: Scores
    mean_rank: Scores
    structural: NDArray[np.bool_]


def _find_evidence(profiles: Sequence[RoutingProfile], options: MaskOptions) -> _Evidence:
    ranks = np.array([profile.mean_rank for profile in profiles])
    often = np.array([profile.counts >= max(options.structural_min, 1) for profile in profiles])
    structural = ((ranks < options.structural_rank) & often).any(axis=0)
    scores = [score(profile, options.method) for profile in profiles]
    if len(profiles) == 1:
        return _Evidence(scores[0], ranks[0], structural)
    # Shares, so that a domain with more text does not count more.
    weights = options.weights or (1.0,) * len(profiles)
    of_domains = np.array([weight * shares(of_domain) for weight, of_domain in zip(weights, scores, strict=True)])
    combined = of_domains.sum(axis=0) if options.combine == "sum" else of_domains.max(axis=0)
    return _Evidence(combined, ranks.min(axis=0), structural)


@dataclass
class _Layer:
    """The mask of one layer while the passes change it."""

    block: int
    scores: list[float]
    mean_rank: list[float]
    structural: set[int]
    kept: set[int]
    groups: list[range]
    swaps: list[Swap] = field(default_factory=list)
    unplaced: list[tuple[int, int]] = field(default_factory=list)

    def keep_structural(self) -> None:
        """Run the second pass."""
        for expert in self._dropped(self.scores):
            if expert in self.structural:
                outgoing = self._weakest_beside(expert)
                if outgoing is None:
                    self.unplaced.append((self.block, expert))
                else:
                    self._swap(expert, outgoing, Pass.STRUCTURAL, self.scores)

    def keep_for_reasoning(self, reasoning: list[float], most: int) -> None:
        """Run the third pass.

        Experts that came in are not swapped out again: their domain scores are low, so each would be the next one.
        """
        came_in: set[int] = set()
        for _ in range(most):
            for incoming in self._dropped(reasoning):
                outgoing = self._weakest_beside(incoming, protected=came_in)
                if outgoing is not None and reasoning[incoming] > reasoning[outgoing]:
                    self._swap(incoming, outgoing, Pass.REASONING, reasoning)
                    came_in.add(incoming)
                    break
            else:
                return

    def _dropped(self, scores: list[float]) -> list[int]:
        """Return the dropped experts, highest score first; ties go to the lower index."""
        return sorted(set(range(len(scores))) - self.kept, key=lambda expert: (-scores[expert], expert))

    def _weakest_beside(self, incoming: int, protected: frozenset[int] | set[int] = frozenset()) -> int | None:
        """Return the kept expert to give up for another one of its group.

        It has the lowest domain score; among equals the largest mean rank, then the highest index.
        """
        group = next(group for group in self.groups if incoming in group)
        candidates = self.kept.intersection(group) - self.structural - protected
        return min(candidates, key=lambda e: (self.scores[e], -self.mean_rank[e], -e), default=None)

    def _swap(self, incoming: int, outgoing: int, stage: Pass, scores: list[float]) -> None:
        self.kept.remove(outgoing)
        self.kept.add(incoming)
        self.swaps.append(Swap(self.block, incoming, outgoing, stage, scores[incoming], scores[outgoing]))
