"""RoutingProfile: how often, at which rank and with what weight each expert was chosen. Value and file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.bundles import MOST_SHARDS
from coe_native.errors import InputError
from coe_native.files import typed_json
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import GgufFile
from coe_native.model.limits import MOST_BLOCKS, MOST_EXPERTS
from coe_native.model.router_shape import RouterShape

Weights = NDArray[np.float64]

FORMAT = "routing-profile"
VERSION = 3
"""Version 2 has profiles whose weights or ranks are not known, version 3 those whose layers have seen unlike
numbers of tokens; all others are written as version 1."""

UNKNOWN = "unknown"
"""Architecture and fingerprint of what other tools have counted, where nobody has said of which model."""

_MOST_TOKENS = 2**45
"""More than anybody will run; sums over all experts of a layer stay exact below."""

_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CorpusRecord:
    """One corpus that a profile has seen: its name, how much of it, and the SHA-256 of all its documents.

    `shards`, ascending: those of `n_shards` parts that were profiled; 1 of 1 is the whole. Which documents are in
    a shard depends on all corpora of the run, for which `run` stands: of whole corpora it says nothing."""

    name: str
    documents: int
    tokens: int
    sha256: str
    shards: tuple[int, ...] = (1,)
    n_shards: int = 1
    run: str = ""

    def __post_init__(self) -> None:
        if self.documents < 0 or self.tokens < 0:
            raise InputError(f"a corpus cannot have {self.documents} documents and {self.tokens} tokens")
        if self.n_shards == 1:
            object.__setattr__(self, "run", "")
        ascending = bool(self.shards) and list(self.shards) == sorted(set(self.shards))
        if not ascending or not 1 <= self.shards[0] <= self.shards[-1] <= self.n_shards <= MOST_SHARDS:
            raise InputError(f"a corpus cannot have shards {self.shards} of {self.n_shards}")

    def as_json(self) -> dict[str, Any]:
        """What a file says of it; whole corpora have no shards to speak of."""
        fields = {"name": self.name, "documents": self.documents, "tokens": self.tokens, "sha256": self.sha256}
        if self.n_shards == 1:
            return fields
        return fields | {"shards": list(self.shards), "n_shards": self.n_shards, "run": self.run}

    @property
    def part(self) -> str:
        """How much of the corpus it is, in words."""
        return "all" if self.n_shards == 1 else f"shard {', '.join(map(str, self.shards))} of {self.n_shards}"

    @property
    def missing(self) -> tuple[int, ...]:
        """The shards that no profile has brought yet."""
        return tuple(sorted(set(range(1, self.n_shards + 1)) - set(self.shards)))

    def completes(self, other: CorpusRecord) -> bool:
        """Whether both are parts of the same corpus in the same run, and of different documents."""
        same = (self.sha256, self.run, self.n_shards) == (other.sha256, other.run, other.n_shards)
        return same and self.n_shards > 1 and not set(self.shards) & set(other.shards)

    def __add__(self, other: CorpusRecord) -> CorpusRecord:
        """Both parts together, where one completes the other."""
        together = replace(
            self,
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            shards=tuple(sorted(self.shards + other.shards)),
        )
        return together if together.missing else replace(together, shards=(1,), n_shards=1, run="")


def _joined(ours: tuple[CorpusRecord, ...], theirs: tuple[CorpusRecord, ...]) -> tuple[CorpusRecord, ...]:
    """The records of two profiles; what was a corpus's shards in both becomes one record. A corpus that was given
    twice to a run has two records in each of its shards. Raises InputError where documents would count twice."""
    joined = list(ours)
    unmatched = list(range(len(ours)))
    for record in theirs:
        at = next((i for i in unmatched if joined[i].completes(record)), None)
        if at is None:
            for other in ours:
                if other.sha256 == record.sha256 and max(other.n_shards, record.n_shards) > 1:
                    raise InputError(
                        f"both have documents of {record.name} ({other.part}, {record.part}); merge shards of one "
                        "run, each once"
                    )
            joined.append(record)
        else:
            unmatched.remove(at)
            joined[at] += record
    return tuple(joined)


def _two_sum(a: Weights, b: Weights) -> tuple[Weights, Weights]:
    """``a + b``, rounded, and the error of that (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _exact_sum(a: Weights, a_rest: Weights, b: Weights, b_rest: Weights) -> tuple[Weights, Weights]:
    """The sum of two sums of which rounding left something out, and what it leaves out of that."""
    rounded, error = _two_sum(a, b)
    return _two_sum(rounded, error + (a_rest + b_rest))


def _check_rest(rest: Weights, total: Weights, what: str) -> None:
    if not (np.abs(rest) <= np.spacing(np.abs(total))).all():
        raise InputError(f"what rounding left out of a profile's {what} must be less than their last digit")


@dataclass(frozen=True, eq=False)
class OutputNorms:
    """How much the experts of a profile put out, all float64 [moe_layer, expert].

    `norm_sum`: the sum, over the tokens that chose an expert, of the Euclidean norm of its output, with its bias
    and its own scale. `weighted_norm_sum`: the sum of these norms times the router's weights, the length of what
    it added to the layer's output (but for a constant scale of the whole layer, and before the way back from a
    latent state). Where a model weights the experts' input instead (Llama 4), both are of the output as it is.

    The rests are what rounding to double left out of the sums; nothing, if not given.
    """

    norm_sum: Weights = field(repr=False)
    weighted_norm_sum: Weights = field(repr=False)
    norm_sum_rest: Weights = field(default_factory=lambda: np.zeros(()), repr=False)
    weighted_norm_sum_rest: Weights = field(default_factory=lambda: np.zeros(()), repr=False)

    def __post_init__(self) -> None:
        for name in ("norm_sum_rest", "weighted_norm_sum_rest"):
            if getattr(self, name).ndim == 0:
                object.__setattr__(self, name, np.zeros(self.norm_sum.shape))

    def check(self, counts: NDArray[np.int64]) -> None:
        """Raises InputError unless experts that were chosen so often, [layer, expert], can have such sums."""
        for name, largest in (("norm_sum", _LARGEST_WEIGHT), ("weighted_norm_sum", _LARGEST_WEIGHT**2)):
            total, rest = getattr(self, name), getattr(self, f"{name}_rest")
            if {total.shape, rest.shape} != {counts.shape}:
                raise InputError(f"a profile's {name} needs a number for each expert of each layer")
            if not (np.abs(total) <= counts * largest).all() or (self.norm_sum < 0).any():
                raise InputError(
                    f"a profile's {name} must be of what the experts put out when they were chosen: finite, and "
                    "nothing for one that never was"
                )
            _check_rest(rest, total, name)

    def __add__(self, other: OutputNorms) -> OutputNorms:
        norms, norms_rest = _exact_sum(self.norm_sum, self.norm_sum_rest, other.norm_sum, other.norm_sum_rest)
        weighted, weighted_rest = _exact_sum(
            self.weighted_norm_sum,
            self.weighted_norm_sum_rest,
            other.weighted_norm_sum,
            other.weighted_norm_sum_rest,
        )
        return OutputNorms(norms, weighted, norms_rest, weighted_rest)


@dataclass(frozen=True, eq=False)
class RoutingProfile:
    """Router statistics of one model over a corpus of `n_tokens` tokens.

    `histograms` (int64) and `weight_sum` (float64) are [moe_layer, expert, rank]: how often an expert was the
    choice of a rank (0: highest weight), and the sum of the router weights of those choices. `layers` gives
    the block index of each MoE layer. `fingerprint` is that of MoeModel; `n_groups` and `n_groups_used` are
    those of RouterShape. In every layer each rank holds ``n_tokens`` choices, but for the last ranks of a layer
    that chooses fewer experts than others, which hold none; anything else raises InputError.

    A program that asks for few outputs lets the last layers run for those tokens only. `layer_tokens` gives how
    many each layer has seen, if not all `n_tokens`.

    Other tools may count choices alone. Where they know no weights, `has_weights` is false, and `weight_sum` zero.
    Where they know no ranks, `n_chosen` is the largest number of experts that a layer chooses for a token, and the
    histograms have one rank for all of a layer's choices.

    `weight_sum_rest`, of the same shape: what rounding to double left out of `weight_sum` (nothing, if not given).
    Together they are the exact sum, so that profiles can be added in any order.

    `outputs`: what the experts put out, where that was counted too.
    """

    architecture: str
    model_name: str
    fingerprint: str
    layers: tuple[int, ...]
    n_tokens: int
    histograms: NDArray[np.int64] = field(repr=False)
    weight_sum: Weights = field(repr=False)
    corpora: tuple[CorpusRecord, ...] = field(default=())
    n_groups: int = 1
    n_groups_used: int = 1
    place: str = "the profile"
    """Where it was read from, for messages about it."""
    weight_sum_rest: Weights = field(default_factory=lambda: np.zeros(()), repr=False)
    has_weights: bool = True
    n_chosen: int | None = None
    layer_tokens: tuple[int, ...] = ()
    outputs: OutputNorms | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shape = self.histograms.shape
        if not self.layer_tokens:
            object.__setattr__(self, "layer_tokens", (self.n_tokens,) * len(self.layers))
        if self.weight_sum_rest.ndim == 0:
            object.__setattr__(self, "weight_sum_rest", np.zeros(shape))
        if (
            len(shape) != 3
            or shape[0] != len(self.layers)
            or {self.weight_sum.shape, self.weight_sum_rest.shape} != {shape}
        ):
            raise InputError("a profile needs histograms and weight sums of one shape [layer, expert, rank]")
        if list(self.layers) != sorted(set(self.layers)):
            raise InputError("a profile's layers must be different blocks in ascending order")
        if not 0 <= self.n_tokens <= _MOST_TOKENS:
            raise InputError(f"a profile cannot be of {self.n_tokens} tokens")
        if len(self.layer_tokens) != len(self.layers) or not all(
            0 <= seen <= self.n_tokens for seen in self.layer_tokens
        ):
            raise InputError(f"a profile of {self.n_tokens} tokens needs those of them that each layer has seen")
        if (self.histograms < 0).any() or (self.histograms > self.n_tokens).any():
            raise InputError(f"no expert can be chosen less than 0 or more than {self.n_tokens} times")
        if not self.has_weights and self.weight_sum.any():
            raise InputError("a profile without weights cannot have a sum of them")
        # A router's weights are of type F32.
        if not (np.abs(self.weight_sum) <= np.maximum(self.histograms, 1) * _LARGEST_WEIGHT).all():
            raise InputError("a profile's weights must be finite, and no larger than a router's can be")
        _check_rest(self.weight_sum_rest, self.weight_sum, "weight sums")
        if self.outputs is not None:
            self.outputs.check(self.counts)
        used = self.n_groups_used
        if self.n_groups < 1 or self.n_experts % self.n_groups or not 0 < used < max(2, self.n_groups):
            raise InputError(f"a profile of {self.n_experts} experts cannot have {self.n_groups} groups")
        if any(not 0 <= block < MOST_BLOCKS for block in self.layers):
            raise InputError(f"a profile's layers are blocks from 0 to {MOST_BLOCKS - 1}")
        self._check_totals()

    def _check_totals(self) -> None:
        totals = self.histograms.sum(axis=1)
        seen = np.array(self.layer_tokens, np.int64)[:, np.newaxis]
        if self.n_chosen is None:
            expected = seen * (np.arange(self.top_k) < self.layer_top_k[:, np.newaxis])
        else:
            expected = seen * self.layer_top_k[:, np.newaxis]
            if totals.shape[1] != 1 or not self.layer_top_k.max() <= self.n_chosen <= self.n_experts:
                raise InputError(f"a profile without ranks cannot choose {self.n_chosen} experts for a token")
        if (totals != expected).any() or (seen[:, 0] > 0)[self.layer_top_k == 0].any():
            needed = self.n_tokens if self.is_whole else list(self.layer_tokens)
            raise InputError(
                f"a profile of {self.n_tokens} tokens needs {needed} choices at each rank of each layer, "
                f"not {totals.tolist()}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether every layer has seen every token."""
        return set(self.layer_tokens) == {self.n_tokens}

    @property
    def shortfall(self) -> str:
        """Which layers have seen fewer tokens than others, in words; empty where all have seen all."""
        blocks_of: dict[int, list[int]] = {}
        for block, seen in zip(self.layers, self.layer_tokens, strict=True):
            if seen != self.n_tokens:
                blocks_of.setdefault(seen, []).append(block)
        short = ", ".join(f"{seen:,} in block {', '.join(map(str, at))}" for seen, at in blocks_of.items())
        return f"of {self.n_tokens:,} tokens, only {short}: each layer is scored by its own" if short else ""

    @property
    def n_experts(self) -> int:
        return int(self.histograms.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.histograms.shape[2]) if self.n_chosen is None else self.n_chosen

    @property
    def has_ranks(self) -> bool:
        """Whether it knows the ranks of choices."""
        return self.n_chosen is None

    @property
    def layer_top_k(self) -> NDArray[np.int64]:
        """Experts that each layer chooses for a token, [layer]."""
        if self.n_chosen is not None:
            return cast("NDArray[np.int64]", self.counts.sum(axis=1) // np.maximum(self.layer_tokens, 1))
        return cast("NDArray[np.int64]", np.count_nonzero(self.histograms.any(axis=1), axis=1))

    @property
    def router_shape(self) -> RouterShape:
        return RouterShape(self.n_experts, self.top_k, self.n_groups, self.n_groups_used)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each expert was chosen at any rank, [layer, expert]."""
        return cast("NDArray[np.int64]", self.histograms.sum(axis=2))

    @property
    def mean_rank(self) -> NDArray[np.float64]:
        """``sum(r * hist) / sum(hist)``, [layer, expert]; infinite for an expert that was never chosen, and for
        all where ranks are not known."""
        ranks = np.full(self.histograms.shape[:2], np.inf)
        if not self.has_ranks:
            return ranks
        weighted = self.histograms @ np.arange(self.top_k)
        np.divide(weighted, self.counts, out=ranks, where=self.counts > 0)
        return ranks

    def __add__(self, other: RoutingProfile) -> RoutingProfile:
        """The profile of both corpora together. Raises InputError for profiles of different models."""
        for what, mine, theirs in (
            ("layers", self.layers, other.layers),
            ("numbers of experts", self.histograms.shape, other.histograms.shape),
            ("groups of experts", self.router_shape, other.router_shape),
            ("kinds of counts", (self.has_weights, self.has_ranks), (other.has_weights, other.has_ranks)),
            ("router weights", self.fingerprint, other.fingerprint),
        ):
            if mine != theirs:
                raise InputError(
                    f"{other.place}: is not of the same model as {self.place}: their {what} differ; "
                    "only profiles of one model add up"
                )
        if (self.outputs is None) != (other.outputs is None):
            without, has = (self, other) if self.outputs is None else (other, self)
            raise InputError(
                f"{without.place}: does not know what experts put out, and {has.place} does; make both with the "
                "same --stats, or leave that out (merge --stats routing)"
            )
        try:
            corpora = _joined(self.corpora, other.corpora)
        except InputError as error:
            raise InputError(f"{other.place} and {self.place}: {error}") from error
        weight_sum, rest = _exact_sum(
            self.weight_sum, self.weight_sum_rest, other.weight_sum, other.weight_sum_rest
        )
        return replace(
            self,
            n_tokens=self.n_tokens + other.n_tokens,
            histograms=self.histograms + other.histograms,
            weight_sum=weight_sum,
            weight_sum_rest=rest,
            corpora=corpora,
            layer_tokens=tuple(map(add, self.layer_tokens, other.layer_tokens)),
            outputs=None if self.outputs is None or other.outputs is None else self.outputs + other.outputs,
            place="the profile",
        )

    @property
    def _version(self) -> int:
        """The oldest version of files that can say what it says."""
        if not self.is_whole:
            return 3
        return 1 if self.has_ranks and self.has_weights else 2

    def save(
        self, path: str | Path, *, force: bool = True, more: Mapping[str, int | str] = MappingProxyType({})
    ) -> None:
        """Writes the profile as a GGUF file, whole or not at all; `more`: further metadata."""
        from gguf import GGUFValueType, GGUFWriter

        from coe_native.files.atomic import check_target, replacing

        path = Path(path)
        check_target(path, force=force)
        with replacing(path) as file:
            writer = GGUFWriter(file.name, self.architecture, use_temp_file=False)
            writer.add_type(FORMAT)
            writer.add_name(self.model_name)
            writer.add_uint32("coe.profile.version", self._version)
            writer.add_string("coe.profile.fingerprint", self.fingerprint)
            writer.add_uint32("coe.profile.expert_count", self.n_experts)
            writer.add_uint32("coe.profile.expert_used_count", self.top_k)
            for what, known in (("weights", self.has_weights), ("ranks", self.has_ranks)):
                if not known:
                    writer.add_bool(f"coe.profile.has_{what}", False)
            writer.add_array("coe.profile.layer_expert_used_count", self.layer_top_k.tolist())
            writer.add_uint32("coe.profile.expert_group_count", self.n_groups)
            writer.add_uint32("coe.profile.expert_group_used_count", self.n_groups_used)
            writer.add_uint64("coe.profile.tokens", self.n_tokens)
            if not self.is_whole:
                writer.add_key_value(
                    "coe.profile.layer_tokens", list(self.layer_tokens), GGUFValueType.ARRAY, GGUFValueType.UINT64
                )
            records = [record.as_json() for record in self.corpora]
            writer.add_string("coe.profile.corpora", json.dumps(records, separators=(",", ":")))
            for key, value in more.items():
                writer.add_string(key, value) if isinstance(value, str) else writer.add_uint64(key, value)
            for index, block in enumerate(self.layers):
                writer.add_tensor(f"blk.{block}.router.histogram", self.histograms[index])
                writer.add_tensor(f"blk.{block}.router.weight_sum", self.weight_sum[index])
                writer.add_tensor(f"blk.{block}.router.weight_sum_rest", self.weight_sum_rest[index])
                if self.outputs is not None:
                    for part in _OUTPUT_PARTS:
                        writer.add_tensor(f"blk.{block}.expert.{part}", getattr(self.outputs, part)[index])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

    @classmethod
    def load(cls, path: str | Path) -> RoutingProfile:
        """Reads a profile back. Raises InputError for another kind of file, a newer version, or damage."""
        path = Path(path)
        file = GgufFile(path)
        if file.get("general.type") != FORMAT:
            raise InputError(f"{path}: is not a routing profile; make one with `coe-native profile`")
        version = file.get("coe.profile.version")
        if version not in range(1, VERSION + 1) or isinstance(version, bool):
            raise InputError(f"{path}: has profile version {version}; this coe-native reads up to {VERSION}")
        try:
            layers = tuple(sorted(int(match[1]) for t in file.tensors if (match := _HISTOGRAM.fullmatch(t.name))))
            histograms = _stack(file, "router.histogram", layers, np.int64)
            # Other programs that write profiles may know nothing of them.
            found = {tensor.name.split(".", 2)[-1] for tensor in file.tensors}
            has_rest = "router.weight_sum_rest" in found
            has_outputs = not found.isdisjoint(f"expert.{part}" for part in _OUTPUT_PARTS)
            has_weights, has_ranks = (
                version < 2 or file.get(f"coe.profile.has_{what}") is not False for what in ("weights", "ranks")
            )
            profile = cls(
                _text(file, "general.architecture"),
                _text(file, "general.name", ""),  # the writer leaves empty texts out
                _text(file, "coe.profile.fingerprint"),
                layers,
                _number(file, "coe.profile.tokens"),
                histograms,
                _stack(file, "router.weight_sum", layers, np.float64),
                typed_json.decode(_text(file, "coe.profile.corpora"), tuple[CorpusRecord, ...]),
                _number(file, "coe.profile.expert_group_count", 1),
                _number(file, "coe.profile.expert_group_used_count", 1),
                str(path),
                _stack(file, "router.weight_sum_rest", layers, np.float64) if has_rest else np.zeros(()),
                has_weights,
                None if has_ranks else _number(file, "coe.profile.expert_used_count"),
                _layer_tokens(file) if version >= 3 else (),
                _outputs(file, layers, found) if has_outputs else None,
            )
            chosen = file.get("coe.profile.layer_expert_used_count")
            if chosen is not None and chosen != profile.layer_top_k.tolist():
                raise InputError("its layers choose other numbers of experts than its metadata say")
            return profile
        except InputError as error:
            raise InputError(f"{path}: is a damaged profile: {error}; make it again") from error


_HISTOGRAM = re.compile(r"blk\.(0|[1-9]\d{0,5})\.router\.histogram", re.ASCII)
_MOST_BYTES = 1 << 26
"""Of one number for each expert and rank of all layers: 100 layers that choose 10 of 512 experts have 4 MB."""

_OUTPUT_PARTS = tuple(OutputNorms.__dataclass_fields__)

_GGML_TYPES: dict[Any, str] = {np.int64: "I64", np.float64: "F64"}


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"its {key} is no whole number")
    return value


def _text(file: GgufFile, key: str, default: str | None = None) -> str:
    value = file.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"its {key} is no text")
    return value


def _layer_tokens(file: GgufFile) -> tuple[int, ...]:
    values = file.get("coe.profile.layer_tokens")
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise InputError("its coe.profile.layer_tokens are no counts")
    return tuple(values)


def _outputs(file: GgufFile, layers: tuple[int, ...], found: set[str]) -> OutputNorms:
    return OutputNorms(
        **{
            part: _stack(file, f"expert.{part}", layers, np.float64, n_dims=1)
            for part in _OUTPUT_PARTS
            if not part.endswith("_rest") or f"expert.{part}" in found
        }
    )


def _stack(file: GgufFile, part: str, layers: tuple[int, ...], dtype: Any, n_dims: int = 2) -> NDArray[Any]:
    """A part of all layers: one number for each expert and rank, [layer, expert, rank], or for each expert,
    [layer, expert]."""
    tensors = {tensor.name: tensor for tensor in file.tensors}
    names = [f"blk.{block}.{part}" for block in layers]
    if not names or not set(names) <= set(tensors):
        raise InputError(f"it has no {part} of {'any' if not names else 'every'} layer")
    wanted = [tensors[name] for name in names]
    for tensor in wanted:
        if (
            tensor.type_name != _GGML_TYPES[dtype]
            or len(tensor.shape) != n_dims
            or tensor.shape != wanted[0].shape
        ):
            raise InputError(f"{tensor.name} is {tensor.type_name} {list(tensor.shape)}")
    n_bytes = sum(tensor.n_bytes for tensor in wanted)
    if n_bytes > _MOST_BYTES or not all(0 < size <= MOST_EXPERTS for size in wanted[0].shape):
        raise InputError(f"its {part} is of no model's size")
    with file.open() as opened:
        data = b"".join(read_exactly(opened, tensor.offset, tensor.n_bytes) for tensor in wanted)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return np.asarray(values.reshape(len(wanted), *wanted[0].shape[::-1]).astype(dtype, copy=False))


def not_of_one_model(first_place: str, first: str, second: str) -> str:
    """What is wrong with something whose fingerprint is not that of what is at `first_place`, in words."""
    if UNKNOWN in (first, second) and first != second:
        return (
            f"cannot be held against {first_place}, for one of them is of no model in particular: import it with "
            "--model"
        )
    return f"is of another model than {first_place}; use what is of one model"


def merge(profiles: Iterable[RoutingProfile]) -> RoutingProfile:
    """The sum of one or more profiles of the same model."""
    return reduce(RoutingProfile.__add__, profiles)
