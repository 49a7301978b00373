"""ExpertMask, and the three passes that make one from a profile."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from coe_native import typed_json
from coe_native._native import core
from coe_native.errors import InputError
from coe_native.gguf_file import read_exactly
from coe_native.moe_model import MoeModel
from coe_native.router_shape import MOST_EXPERTS
from coe_native.routing_profile import UNKNOWN, RoutingProfile, not_of_one_model
from coe_native.scoring import COMBINATIONS, Scores, score, shares

FORMAT = "coe-native.expert-mask"
VERSION = 1

MOST_BYTES = 16 << 20
"""Of a mask's file: that of 256 layers with 4096 experts has some 6 MB."""

_KIND = typed_json.Kind(FORMAT, VERSION, MOST_BYTES, "mask", "make one with `coe-native mask`")


@dataclass(frozen=True)
class Swap:
    """One expert that came in for another: its block, the pass (2: structural, 3: reasoning) and the scores
    that decided. In pass 2 both are domain scores; in pass 3 both are reasoning scores."""

    layer: int
    incoming: int
    outgoing: int
    stage: int
    incoming_score: float
    outgoing_score: float


@dataclass(frozen=True)
class ExpertMask:
    """Which experts stay: `kept` maps a block index to the kept experts, ascending, `keep` of `n_experts` in
    every block. `unplaced` lists structural experts (block, expert) for whom nobody was left to replace."""

    architecture: str
    fingerprint: str
    n_experts: int
    keep: int
    kept: Mapping[int, tuple[int, ...]]
    swaps: tuple[Swap, ...] = ()
    unplaced: tuple[tuple[int, int], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="the mask", compare=False)
    """Where it was read from, for messages about it."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= self.n_experts <= MOST_EXPERTS or not self.kept:
            raise InputError(f"a mask cannot keep {self.keep} of {self.n_experts} experts")
        if any(swap.stage not in (2, 3) for swap in self.swaps):
            raise InputError("a mask's swaps are of the second pass or the third")
        for block, experts in self.kept.items():
            if list(experts) != sorted(set(experts)) or len(experts) != self.keep:
                raise InputError(f"a mask must keep {self.keep} different experts in block {block}, ascending")
            if experts[0] < 0 or experts[-1] >= self.n_experts:
                raise InputError(f"a mask keeps an expert outside 0 to {self.n_experts - 1} in block {block}")

    @property
    def is_tied(self) -> bool:
        """Whether it says of which model it is. What other tools have made may not."""
        return self.fingerprint != UNKNOWN

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the mask keeps, whatever its history."""
        kept = {str(block): list(experts) for block, experts in sorted(self.kept.items())}
        content = [self.architecture, self.n_experts, self.keep, kept]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def dropped(self, block: int) -> list[int]:
        """The experts of a block that go, ascending."""
        return sorted(set(range(self.n_experts)) - set(self.kept[block]))

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Writes the mask as JSON, whole or not at all."""
        from coe_native.atomic import check_target, replacing

        path = Path(path)
        check_target(path, force=force)
        document = _Document(
            architecture=self.architecture,
            fingerprint=self.fingerprint,
            expert_count=self.n_experts,
            keep=self.keep,
            layers={str(block): tuple(experts) for block, experts in sorted(self.kept.items())},
            swaps=self.swaps,
            unplaced=self.unplaced,
            provenance=dict(self.provenance),
        )
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> ExpertMask:
        """Reads a mask back. Raises InputError for another kind of file, a newer version, or damage."""
        path = Path(path)
        return cls._decoded(_KIND.read(path), str(path))

    @classmethod
    def parse(cls, data: bytes, place: str = "the mask") -> ExpertMask:
        """The same from a file's bytes, which came from `place`."""
        if len(data) > MOST_BYTES:
            raise InputError(f"{place}: is of no mask's size")
        _KIND.check(data, place)
        return cls._decoded(data, place)

    @classmethod
    def _decoded(cls, data: bytes, place: str) -> ExpertMask:
        try:
            document = typed_json.decode(data, _Document)
            return cls(
                document.architecture,
                document.fingerprint,
                document.expert_count,
                document.keep,
                {_block(block): experts for block, experts in document.layers.items()},
                document.swaps,
                document.unplaced,
                document.provenance,
                place,
            )
        except InputError as error:
            raise InputError(f"{place}: is a damaged mask ({error}); make it again") from error


class _Document(msgspec.Struct, kw_only=True):
    """A mask file, by the public interface."""

    format: str = FORMAT
    version: int = VERSION
    architecture: str
    fingerprint: str
    expert_count: int
    keep: int
    layers: dict[str, tuple[int, ...]]
    swaps: tuple[Swap, ...] = ()
    unplaced: tuple[tuple[int, int], ...] = ()
    provenance: dict[str, Any] = {}


def _block(text: str) -> int:
    if not re.fullmatch(r"0|[1-9]\d{0,8}", text, re.ASCII) or int(text) >= core.MOST_BLOCKS:
        raise InputError(f"{text!r} is no block index")
    return int(text)


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


def check_mask(mask: ExpertMask, model: MoeModel) -> None:
    """Raises InputError, saying what differs, unless `mask` was made for `model`."""
    for what, theirs, ours in (
        ("architecture", mask.architecture, model.architecture if mask.is_tied else UNKNOWN),
        ("number of experts", mask.n_experts, model.n_experts),
        ("list of MoE layers", sorted(mask.kept), model.blocks),
    ):
        if theirs != ours:
            raise InputError(
                f"{mask.place}: was made for another model than {model.path}: its {what} differs "
                f"({theirs}, not {ours}); profile this model and make its own mask"
            )
    if mask.is_tied and mask.fingerprint != model.fingerprint:
        raise InputError(
            f"{mask.place}: was made for another model than {model.path}: its routers have other weights; "
            "profile this model and make its own mask"
        )
    if mask.keep < model.top_k:
        raise InputError(f"{mask.place}: keeps {mask.keep} experts, but a token needs {model.top_k}")


def check_cut(mask: ExpertMask, model: MoeModel) -> None:
    """Raises InputError, with the reason, unless `model` can be cut to what `mask` keeps: the mask must be the
    model's own, and llama.cpp must compute with fewer experts what the parent does with the others masked."""
    check_mask(mask, model)
    model.check_cut(mask.keep)
    uneven = [block for block, kept in mask.kept.items() if not model.router_shape.is_even(kept)]
    if uneven:
        raise InputError(
            f"{mask.place}: keeps unlike numbers of the {model.router_shape.n_groups} groups of experts in blocks "
            f"{uneven}, which {model.path} cannot be cut to; make a mask from a profile of this model"
        )


def keep_by_router_norm(model: MoeModel, keep: int) -> dict[int, tuple[int, ...]]:
    """The experts to keep in the layers that no profile sees (MTP): those whose rows of the router have the
    largest norm, as many in each group, ties to the lower index. By block index; the router's bytes are read."""
    kept = {}
    for layer in model.mtp_layers:
        with layer.router.file.open() as file:
            data = read_exactly(file, layer.router.offset, layer.router.n_bytes)
        if not core.has_norm(layer.router.type):
            raise InputError(f"{model.path}: {layer.router.name} is of a type that ggml cannot read")
        norms = np.asarray(core.slice_norms(data, layer.router.type, model.n_experts))
        kept[layer.block] = tuple(model.router_shape.best(norms, keep))
    return kept
