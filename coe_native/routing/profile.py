"""RoutingProfile: how often, at which rank and with what weight each expert was chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.files import typed_json
from coe_native.files.atomic import check_target, replacing
from coe_native.model.gguf_file import GgufFile
from coe_native.model.router_shape import RouterShape
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.output_norms import OutputNorms, Sums

UNKNOWN = "unknown"
"""Architecture and fingerprint of other tools' counts that belong to no model in particular."""


@dataclass(frozen=True, eq=False)
class RoutingProfile:
    """Router statistics of one model over a corpus.

    Each rank of a layer holds as many choices as the layer has seen tokens, except for the last ranks of a layer
    that chooses fewer experts than others, which hold none.

    Attributes:
        architecture: The model's architecture, or UNKNOWN.
        model_name: The model's name.
        fingerprint: The model's fingerprint (`ModelHeader.fingerprint`), or UNKNOWN.
        layers: Block index of each MoE layer.
        n_tokens: Tokens of the corpus.
        histograms: Number of times that an expert was chosen at each rank, 0 being the highest weight; int64
            [moe_layer, expert, rank].
        weight_sum: Sum of the router's weights of those choices; float64, the same shape.
        corpora: What was profiled.
        n_groups: Groups of experts (`RouterShape`).
        n_groups_used: Groups that a token uses.
        place: Where the profile was read from, for messages.
        weight_sum_rest: What rounding to float64 left out of `weight_sum`; zero by default. Both together are the
            exact sum, so that profiles can be added in any order.
        has_weights: False for counts of other tools that do not know the weights; `weight_sum` is zero then.
        n_chosen: For counts of other tools that do not know the ranks, the largest number of experts that a layer
            chooses for a token. The histograms have one rank then, for all choices.
        layer_tokens: Tokens that each layer has seen; all by default. A program that asks for few outputs lets
            the last layers run for those tokens only.
        outputs: Activation norms, where they were counted.

    Raises:
        InputError: No run can have such counts.
    """

    architecture: str
    model_name: str
    fingerprint: str
    layers: tuple[int, ...]
    n_tokens: int
    histograms: NDArray[np.int64] = field(repr=False)
    weight_sum: Sums = field(repr=False)
    corpora: tuple[CorpusRecord, ...] = ()
    n_groups: int = 1
    n_groups_used: int = 1
    place: str = "the profile"
    weight_sum_rest: Sums = field(default_factory=lambda: np.zeros(()), repr=False)
    has_weights: bool = True
    n_chosen: int | None = None
    layer_tokens: tuple[int, ...] = ()
    outputs: OutputNorms | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.layer_tokens:
            object.__setattr__(self, "layer_tokens", (self.n_tokens,) * len(self.layers))
        if self.weight_sum_rest.ndim == 0:
            object.__setattr__(self, "weight_sum_rest", np.zeros(self.histograms.shape))
        self._check_shapes()
        try:
            self.native.check()
        except TypeError as error:
            raise InputError("a profile's numbers must not be negative, nor larger than any run's") from error
        except ValueError as error:
            raise InputError(str(error)) from error

    def _check_shapes(self) -> None:
        shape = self.histograms.shape
        if self.histograms.dtype.kind not in "iu":
            raise InputError(f"a profile's histograms must be integers, not {self.histograms.dtype}")
        if len(shape) != 3 or {self.weight_sum.shape, self.weight_sum_rest.shape} != {shape}:
            raise InputError("a profile needs histograms and weight sums of one shape [layer, expert, rank]")
        for name, values in () if self.outputs is None else vars(self.outputs).items():
            if values.shape != shape[:2]:
                raise InputError(f"a profile's {name} needs a number for each expert of each layer")

    @property
    def native(self) -> core.Profile:
        """Return the profile as the C++ core has it, with copies of the arrays."""
        made = core.Profile()
        made.architecture, made.model_name, made.fingerprint = (
            text.encode("utf-8", "replace") for text in (self.architecture, self.model_name, self.fingerprint)
        )
        made.blocks = list(self.layers)
        made.n_experts, made.n_ranks = self.histograms.shape[1:]
        made.n_chosen = self.n_chosen or 0
        made.n_groups, made.n_groups_used = self.n_groups, self.n_groups_used
        made.n_tokens, made.layer_tokens = self.n_tokens, list(self.layer_tokens)
        made.has_weights = self.has_weights
        made.set_counts(self.histograms, self.weight_sum, self.weight_sum_rest)
        if self.outputs is not None:
            made.set_outputs(*vars(self.outputs).values())
        made.corpora = msgspec.json.encode([record.as_json() for record in self.corpora])
        return made

    @classmethod
    def from_native(cls, native: core.Profile, place: str = "the profile") -> RoutingProfile:
        """Return the profile that the C++ core has."""
        return cls(
            architecture=native.architecture,
            model_name=native.model_name,
            fingerprint=native.fingerprint,
            layers=tuple(native.blocks),
            n_tokens=native.n_tokens,
            histograms=native.histograms,
            weight_sum=native.weight_sum,
            corpora=typed_json.decode(native.corpora, tuple[CorpusRecord, ...]),
            n_groups=native.n_groups,
            n_groups_used=native.n_groups_used,
            place=place,
            weight_sum_rest=native.weight_sum_rest,
            has_weights=native.has_weights,
            n_chosen=native.n_chosen or None,
            layer_tokens=tuple(native.layer_tokens),
            outputs=None if native.outputs is None else OutputNorms(*native.outputs),
        )

    @property
    def is_whole(self) -> bool:
        """Return whether every layer has seen every token."""
        return set(self.layer_tokens) == {self.n_tokens}

    @property
    def shortfall(self) -> str:
        """Return which layers have seen fewer tokens than others, as text; empty where none has."""
        blocks_of: dict[int, list[int]] = {}
        for block, seen in zip(self.layers, self.layer_tokens, strict=True):
            if seen != self.n_tokens:
                blocks_of.setdefault(seen, []).append(block)
        short = ", ".join(f"{seen:,} in block {', '.join(map(str, at))}" for seen, at in blocks_of.items())
        return f"of {self.n_tokens:,} tokens, only {short}: each layer is scored by its own" if short else ""

    @property
    def n_experts(self) -> int:
        """Return the number of experts of a layer."""
        return int(self.histograms.shape[1])

    @property
    def top_k(self) -> int:
        """Return the largest number of experts that a layer chooses for a token."""
        return int(self.histograms.shape[2]) if self.n_chosen is None else self.n_chosen

    @property
    def has_ranks(self) -> bool:
        """Return whether the ranks of choices are known."""
        return self.n_chosen is None

    @property
    def layer_top_k(self) -> NDArray[np.int64]:
        """Return the number of experts that each layer chooses for a token, int64 [moe_layer]."""
        if self.n_chosen is not None:
            return cast("NDArray[np.int64]", self.counts.sum(axis=1) // np.maximum(self.layer_tokens, 1))
        return cast("NDArray[np.int64]", np.count_nonzero(self.histograms.any(axis=1), axis=1))

    @property
    def router_shape(self) -> RouterShape:
        """Return how the model's routers choose."""
        return RouterShape(self.n_experts, self.top_k, self.n_groups, self.n_groups_used)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return how often each expert was chosen, at any rank, int64 [moe_layer, expert]."""
        return cast("NDArray[np.int64]", self.histograms.sum(axis=2))

    @property
    def mean_rank(self) -> NDArray[np.float64]:
        """Return ``sum(r * hist) / sum(hist)``, float64 [moe_layer, expert].

        It is infinite for an expert that was never chosen, and for all where ranks are not known.
        """
        ranks = np.full(self.histograms.shape[:2], np.inf)
        if not self.has_ranks:
            return ranks
        weighted = self.histograms @ np.arange(self.top_k)
        np.divide(weighted, self.counts, out=ranks, where=self.counts > 0)
        return ranks

    def __add__(self, other: RoutingProfile) -> RoutingProfile:
        """Return the profile of both corpora together.

        Raises:
            InputError: The profiles are of different models, count different things, or share documents.
        """
        total = self.native
        try:
            total.add(other.native)
        except ValueError as error:
            raise InputError(f"{self.place} and {other.place}: {error}") from error
        return self.from_native(total)

    def save(
        self, path: str | Path, *, force: bool = True, more: Mapping[str, int | str] = MappingProxyType({})
    ) -> None:
        """Write the profile as a GGUF file, whole or not at all.

        Args:
            path: The file.
            force: Replace a file that exists.
            more: Further metadata.

        Raises:
            InputError: `path` cannot be an output, or exists and `force` is false.
            CoeError: The system cannot write it.
        """
        path = Path(path)
        check_target(path, force=force)
        with replacing(path) as file:
            file.write(self.native.encode(list(more.items())))

    @classmethod
    def load(cls, path: str | Path) -> RoutingProfile:
        """Read a profile's file.

        Raises:
            InputError: It is not a profile, of a newer version, or damaged.
        """
        file = GgufFile(Path(path))
        try:
            native = core.decode_profile(file.native)
        except ValueError as error:
            raise InputError(str(error)) from error
        file.check_unchanged()
        return cls.from_native(native, str(path))


def not_of_one_model(first_place: str, first: str, second: str) -> str:
    """Return why two fingerprints differ, for a message that begins with the place of the second."""
    if UNKNOWN in (first, second) and first != second:
        return (
            f"cannot be compared with {first_place}, because one of them belongs to no model in particular; "
            "import it with --model"
        )
    return f"is of another model than {first_place}; use files of one model"


def merge(profiles: Iterable[RoutingProfile]) -> RoutingProfile:
    """Return the sum of one or more profiles of one model.

    Raises:
        InputError: They cannot be added.
    """
    return reduce(RoutingProfile.__add__, profiles)
