"""RoutingProfile: how often, at which rank and with what weight each expert was chosen. Value and file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError

FORMAT = "routing-profile"
VERSION = 1


@dataclass(frozen=True)
class CorpusRecord:
    """One corpus that a profile has seen: its name, size, and the SHA-256 of its documents."""

    name: str
    documents: int
    tokens: int
    sha256: str


@dataclass(frozen=True, eq=False)
class RoutingProfile:
    """Router statistics of one model over a corpus of `n_tokens` tokens.

    `histograms` (int64) and `weight_sum` (float64) are [moe_layer, expert, rank]: how often an expert was the
    choice of a rank (0: highest weight), and the sum of the router weights of those choices. `layers` gives
    the block index of each MoE layer. `fingerprint` is that of MoeModel. For every layer,
    ``histograms[layer].sum() == n_tokens * top_k``; anything else raises InputError.
    """

    architecture: str
    model_name: str
    fingerprint: str
    layers: tuple[int, ...]
    n_tokens: int
    histograms: NDArray[np.int64] = field(repr=False)
    weight_sum: NDArray[np.float64] = field(repr=False)
    corpora: tuple[CorpusRecord, ...] = field(default=())
    place: str = "the profile"
    """Where it was read from, for messages about it."""

    def __post_init__(self) -> None:
        shape = self.histograms.shape
        if len(shape) != 3 or shape[0] != len(self.layers) or self.weight_sum.shape != shape:
            raise InputError("a profile needs histograms and weight sums of one shape [layer, expert, rank]")
        if list(self.layers) != sorted(set(self.layers)):
            raise InputError("a profile's layers must be different blocks in ascending order")
        if self.n_tokens < 0 or (self.histograms < 0).any() or not np.isfinite(self.weight_sum).all():
            raise InputError("a profile's counts must not be negative and its weights must be finite")
        totals = self.histograms.sum(axis=(1, 2))
        if (totals != self.n_tokens * self.top_k).any():
            raise InputError(
                f"a profile of {self.n_tokens} tokens needs {self.n_tokens * self.top_k} choices in each "
                f"layer, not {totals.tolist()}"
            )

    @property
    def n_experts(self) -> int:
        return int(self.histograms.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.histograms.shape[2])

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each expert was chosen at any rank, [layer, expert]."""
        return cast("NDArray[np.int64]", self.histograms.sum(axis=2))

    @property
    def mean_rank(self) -> NDArray[np.float64]:
        """``sum(r * hist) / sum(hist)``, [layer, expert]; infinite for an expert that was never chosen."""
        weighted = self.histograms @ np.arange(self.top_k)
        ranks = np.full(weighted.shape, np.inf)
        np.divide(weighted, self.counts, out=ranks, where=self.counts > 0)
        return ranks

    def __add__(self, other: RoutingProfile) -> RoutingProfile:
        """The profile of both corpora together. Raises InputError for profiles of different models."""
        for what, mine, theirs in (
            ("layers", self.layers, other.layers),
            ("numbers of experts", self.histograms.shape, other.histograms.shape),
            ("router weights", self.fingerprint, other.fingerprint),
        ):
            if mine != theirs:
                raise InputError(
                    f"{other.place}: is not of the same model as {self.place}: their {what} differ; "
                    "only profiles of one model add up"
                )
        return RoutingProfile(
            self.architecture,
            self.model_name,
            self.fingerprint,
            self.layers,
            self.n_tokens + other.n_tokens,
            self.histograms + other.histograms,
            self.weight_sum + other.weight_sum,
            self.corpora + other.corpora,
        )

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Writes the profile as a GGUF file, whole or not at all."""
        from gguf import GGUFWriter

        from coe_native.atomic import check_target, replacing

        path = Path(path)
        check_target(path, force=force)
        with replacing(path) as file:
            writer = GGUFWriter(file.name, self.architecture, use_temp_file=False)
            writer.add_type(FORMAT)
            writer.add_name(self.model_name)
            writer.add_uint32("coe.profile.version", VERSION)
            writer.add_string("coe.profile.fingerprint", self.fingerprint)
            writer.add_uint32("coe.profile.expert_count", self.n_experts)
            writer.add_uint32("coe.profile.expert_used_count", self.top_k)
            writer.add_uint64("coe.profile.tokens", self.n_tokens)
            writer.add_string("coe.profile.corpora", json.dumps([asdict(c) for c in self.corpora]))
            for index, block in enumerate(self.layers):
                writer.add_tensor(f"blk.{block}.router.histogram", self.histograms[index])
                writer.add_tensor(f"blk.{block}.router.weight_sum", self.weight_sum[index])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()

    @classmethod
    def load(cls, path: str | Path) -> RoutingProfile:
        """Reads a profile back. Raises InputError for another kind of file, a newer version, or damage."""
        from coe_native.gguf_file import GgufFile

        path = Path(path)
        file = GgufFile(path)
        if file.get("general.type") != FORMAT:
            raise InputError(f"{path}: is not a routing profile; make one with `coe-native profile`")
        version = file.get("coe.profile.version")
        if version not in range(1, VERSION + 1) or isinstance(version, bool):
            raise InputError(f"{path}: has profile version {version}; this coe-native reads up to {VERSION}")
        tensors = {tensor.name: tensor for tensor in file.tensors}
        names = [n for n in tensors if n.endswith(".router.histogram")]
        try:
            layers = tuple(sorted(int(name.split(".")[1]) for name in names))
            cubes = [
                np.stack([_read(tensors[f"blk.{block}.router.{part}"], dtype) for block in layers])
                for part, dtype in (("histogram", np.int64), ("weight_sum", np.float64))
            ]
            corpora = tuple(CorpusRecord(**record) for record in json.loads(file.get("coe.profile.corpora")))
            return cls(
                str(file.get("general.architecture")),
                str(file.get("general.name")),
                str(file.get("coe.profile.fingerprint")),
                layers,
                int(file.get("coe.profile.tokens")),
                cubes[0],
                cubes[1],
                corpora,
                str(path),
            )
        except InputError as error:
            raise InputError(f"{path}: is damaged: {error}") from error
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise InputError(f"{path}: is a damaged profile ({error}); make it again") from error


_GGML_TYPES: dict[Any, str] = {np.int64: "I64", np.float64: "F64"}


def _read(tensor: Any, dtype: Any) -> NDArray[Any]:
    from coe_native.gguf_file import read_exactly

    if tensor.type_name != _GGML_TYPES[dtype] or len(tensor.shape) != 2:
        raise InputError(f"{tensor.name} is {tensor.type_name} {list(tensor.shape)}")
    with tensor.file.open() as file:
        data = read_exactly(file, tensor.offset, tensor.n_bytes)
    values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
    return np.asarray(values.reshape(tensor.shape[::-1]).astype(dtype))


def merge(profiles: Iterable[RoutingProfile]) -> RoutingProfile:
    """The sum of one or more profiles of the same model."""
    return reduce(RoutingProfile.__add__, profiles)
