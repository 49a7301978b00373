"""Plan expert surgery: which bytes of the parent make a specialist. Plans are made from headers alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.files.reading import CHUNK, read_exactly
from coe_native.masks.check import check_cut, check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import GgufFile, Tensor, encode_entry, encode_header, encode_tensor, tensor_layout
from coe_native.model.header import ModelHeader, MoeLayer
from coe_native.model.other_parts import is_key_of_other_part
from coe_native.model.sampler_defaults import PUBLISHED_SAMPLING, SamplerDefaults
from coe_native.surgery.mtp import entries_without_mtp, in_mtp_block, kept_by_router_norm
from coe_native.surgery.notice import safety_notice

# Metadata about how a file was split. The parent's is not copied.
SHARD_KEYS = ("split.no", "split.count", "split.tensors.count")

# Values of `coe.mask.mtp`, for layers that predict further tokens.
MTP_BY_NORM, MTP_DROPPED = "kept by router norm", "dropped"

# Values of `coe.mask.vision`, for vision and audio parts in the same file.
VISION_KEPT, VISION_DROPPED = "kept", "dropped"

LEAST_ALIGNMENT = 32
"""Bytes. llama.cpp maps tensors into buffers with this alignment, and cannot load all files that have less."""

_ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True)
class SliceRange:
    """Neighbouring slices of a tensor.

    Attributes:
        first: The first slice.
        count: Number of slices.
        zero: Whether zeros replace the parent's bytes.
    """

    first: int
    count: int
    zero: bool = False


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        source: The parent's tensor.
        shape: The output's dimensions in GGUF's order.
        n_slices: Number of equal slices of `source`: one for each expert. A tensor that is copied as a whole
            has one for each byte, so that it can be copied in pieces of any size.
        runs: The slices that are written.
        touched: Whether the slices are experts'.
        new_type: ggml's type of the output if the tensor is requantised, which these plans only describe; None:
            the bytes do not change.
    """

    source: Tensor
    shape: tuple[int, ...]
    n_slices: int
    runs: tuple[SliceRange, ...]
    touched: bool = True
    new_type: int | None = None

    @classmethod
    def whole(cls, tensor: Tensor) -> PlannedTensor:
        """Return the plan for a tensor that is copied as a whole."""
        return cls(
            source=tensor,
            shape=tensor.shape,
            n_slices=tensor.n_bytes,
            runs=(SliceRange(0, tensor.n_bytes),),
            touched=False,
        )

    @property
    def slice_bytes(self) -> int:
        """Return the size of a slice in bytes."""
        return self.source.n_bytes // max(1, self.n_slices)

    @property
    def n_bytes(self) -> int:
        """Return the size of the output tensor in bytes."""
        if self.new_type is not None:
            return core.tensor_bytes(core.type_name(self.new_type).lower(), self.shape)
        return self.slice_bytes * sum(run.count for run in self.runs)

    @property
    def type(self) -> int:
        """Return ggml's type of the output."""
        return self.source.type if self.new_type is None else self.new_type

    def pieces(self) -> Iterator[SliceRange]:
        """Yield the runs in pieces of whole slices, each of about CHUNK bytes."""
        most = max(1, CHUNK // max(1, self.slice_bytes))
        for run in self.runs:
            for start in range(run.first, run.first + run.count, most):
                yield SliceRange(start, min(most, run.first + run.count - start), run.zero)

    def where(self, piece: SliceRange) -> tuple[int, int]:
        """Return the offset of a piece in the parent's file, and its size in bytes."""
        return self.source.offset + piece.first * self.slice_bytes, piece.count * self.slice_bytes

    def expected(self, file: BinaryIO, piece: SliceRange) -> bytes:
        """Return the bytes that a piece must have in the output.

        Args:
            file: The parent's file that holds the tensor.
            piece: The piece.
        """
        offset, n_bytes = self.where(piece)
        return bytes(n_bytes) if piece.zero else read_exactly(file, offset, n_bytes)


@dataclass(frozen=True)
class Plan:
    """The plan of a whole output, or of one shard of it.

    Attributes:
        model: The parent.
        entries: The metadata entries, as bytes.
        tensors: The tensors, in the parent's order.
    """

    model: ModelHeader
    entries: tuple[bytes, ...]
    tensors: tuple[PlannedTensor, ...]

    @property
    def alignment(self) -> int:
        """Return the number of bytes of which tensors start at a multiple."""
        return max(LEAST_ALIGNMENT, self.model.files[0].header.alignment)

    def with_types(self, types: Mapping[str, int]) -> Plan:
        """Return the plan of the same tensors with other types, by their names, as a quantiser writes them."""
        tensors = [
            replace(t, new_type=types[t.source.name])
            if types.get(t.source.name, t.source.type) != t.source.type
            else t
            for t in self.tensors
        ]
        return replace(self, tensors=tuple(tensors))

    def layout(self) -> tuple[list[int], int]:
        """Return each tensor's offset from the start of the data, and the size of the data with padding."""
        return tensor_layout([tensor.n_bytes for tensor in self.tensors], self.alignment)

    def header(self) -> bytes:
        """Return all bytes before the data, with padding."""
        tensors = [(t.source.name, t.shape, t.type, t.n_bytes) for t in self.tensors]
        return encode_header(self.model.files[0].header.version, self.entries, tensors, self.alignment)

    @property
    def largest_piece(self) -> int:
        """Return the size in bytes of the largest piece, which must fit into memory."""
        return max((t.slice_bytes * p.count for t in self.tensors for p in t.pieces()), default=0)

    @property
    def n_bytes(self) -> int:
        """Return the size of the output file in bytes."""
        return len(self.header()) + self.layout()[1]

    def shards(self, counts: Sequence[int]) -> list[Plan]:
        """Split the output into several files. The first has all metadata, as llama.cpp expects.

        Args:
            counts: Number of tensors in each file.
        """
        if len(counts) == 1:
            return [self]
        ends = list(itertools.accumulate(counts))
        return [
            replace(
                self,
                entries=(*(self.entries if number == 0 else ()), *self._shard_entries(number, len(counts))),
                tensors=self.tensors[end - count : end],
            )
            for number, (count, end) in enumerate(zip(counts, ends, strict=True))
        ]

    def _shard_entries(self, number: int, count: int) -> tuple[bytes, ...]:
        values = (number, "U16"), (count, "U16"), (len(self.tensors), "I32")
        return tuple(encode_entry(key, *value) for key, value in zip(SHARD_KEYS, values, strict=True))

    def counts_within(self, most: int) -> list[int]:
        """Return the number of tensors in each file if files have at most `most` bytes.

        A larger tensor has a file of its own.
        """
        alignment = self.alignment
        own = self._shard_entries(0, 1)

        def empty(*entries: bytes) -> int:
            return len(replace(self, entries=entries, tensors=()).header()) + alignment

        counts, used = [0], empty(*self.entries, *own)
        for tensor in self.tensors:
            info = encode_tensor(tensor.source.name, tensor.shape, tensor.type, 0)
            size = len(info) + tensor.n_bytes + alignment
            if counts[-1] and used + size > most:
                counts.append(0)
                used = empty(*own)
            counts[-1] += 1
            used += size
        return counts


def plan_prune(
    model: ModelHeader,
    mask: ExpertMask,
    *,
    drop_mtp: bool = False,
    keep_vision: bool = False,
    sampling: SamplerDefaults | None = PUBLISHED_SAMPLING,
) -> Plan:
    """Plan a file with the kept experts only.

    Args:
        model: The parent.
        mask: The mask.
        drop_mtp: Leave out the layers that predict further tokens (MTP). No mask covers them; if they stay,
            they keep the same number of experts, those whose router rows have the largest norms.
        keep_vision: Keep vision and audio parts that are in the same file. llama.cpp does not load such files.
        sampling: Sampling settings for llama.cpp's programs; None: the parent's, if it has any.

    Raises:
        InputError: The mask is of another model, or the model cannot be cut in this way.
    """
    check_cut(mask, model)
    _check_not_zeroed(mask, model)
    if drop_mtp and not model.mtp_blocks:
        raise InputError(f"{model.path}: has no layers that predict further tokens, so none can be dropped")
    kept_in = dict(mask.kept) if drop_mtp else {**mask.kept, **kept_by_router_norm(model, mask.keep)}
    kept_of = {
        t.name: kept_in[layer.block] for layer in model.layers for t in layer.tensors if layer.block in kept_in
    }

    def cut(tensor: Tensor) -> PlannedTensor:
        kept = kept_of.get(tensor.name)
        if kept is None:
            return PlannedTensor.whole(tensor)
        return PlannedTensor(
            source=tensor, shape=(*tensor.shape[:-1], len(kept)), n_slices=model.n_experts, runs=_runs(kept)
        )

    count_key = f"{model.architecture}.expert_count"
    changes = {count_key: encode_entry(count_key, mask.keep)}
    if sampling is not None:
        changes |= sampling.entries(model)
    record = {}
    if drop_mtp:
        changes |= entries_without_mtp(model)
        record["coe.mask.mtp"] = MTP_DROPPED
    elif model.mtp_layers:
        record["coe.mask.mtp"] = MTP_BY_NORM
    tensors = [t for t in model.tensors.values() if not (drop_mtp and in_mtp_block(model, t))]
    if model.other_parts:
        record["coe.mask.vision"] = VISION_KEPT if keep_vision else VISION_DROPPED
    if not keep_vision:
        others = {tensor.name for tensor in model.other_parts}
        tensors = [tensor for tensor in tensors if tensor.name not in others]
    entries = _entries(
        model, mask, "prune", changes, record, drop_vision=bool(model.other_parts) and not keep_vision
    )
    return Plan(model, entries, tuple(map(cut, tensors)))


def plan_copy(model: ModelHeader) -> Plan:
    """Plan a file with the same tensors as the model, without vision and audio parts."""
    first, others = model.files[0], set(model.other_parts)
    entries = [first.raw_entry(key) for key in first.keys if key not in SHARD_KEYS]
    of_experts = {tensor.name for layer in model.layers for tensor in layer.tensors}

    def whole(tensor: Tensor) -> PlannedTensor:
        if tensor.name not in of_experts:
            return PlannedTensor.whole(tensor)
        every = (SliceRange(0, model.n_experts),)
        return PlannedTensor(source=tensor, shape=tensor.shape, n_slices=model.n_experts, runs=every)

    tensors = [whole(tensor) for tensor in model.tensors.values() if tensor not in others]
    return Plan(model, tuple(entries), tuple(tensors))


def plan_zero(model: ModelHeader, mask: ExpertMask) -> Plan:
    """Plan a file like the parent, with the weights and biases of dropped experts zeroed.

    Args:
        model: The parent.
        mask: The mask.

    Raises:
        InputError: The mask is of another model, or another mask has zeroed experts of the parent.
    """
    check_mask(mask, model)
    _check_not_zeroed(mask, model)
    layer_of = {t.name: layer for layer in model.routed_layers for t in layer.weights}

    def cut(tensor: Tensor) -> PlannedTensor:
        layer = layer_of.get(tensor.name)
        if layer is None:
            return PlannedTensor.whole(tensor)
        runs = [*_runs(mask.kept[layer.block]), *_dropped_runs(mask, layer)]
        return PlannedTensor(
            source=tensor,
            shape=tensor.shape,
            n_slices=model.n_experts,
            runs=tuple(sorted(runs, key=lambda run: run.first)),
        )

    return Plan(model, _entries(model, mask, "zero", {}, {}), tuple(map(cut, model.tensors.values())))


def _check_not_zeroed(mask: ExpertMask, model: ModelHeader) -> None:
    """Check that no other mask has zeroed experts of the model: this one may keep some of them."""
    done = model.surgery
    if done is not None and done.mode == "zero" and done.digest != mask.digest:
        doing = "is being" if model.files[0].under_surgery else "was"
        raise InputError(
            f"{model.path}: {doing} zeroed by another mask ({done.digest[:12]}..., not {mask.digest[:12]}... as "
            f"{mask.place}); use that mask, or the original model"
        )


def _dropped_runs(mask: ExpertMask, layer: MoeLayer) -> list[SliceRange]:
    return [SliceRange(run.first, run.count, zero=True) for run in _runs(tuple(mask.dropped(layer.block)))]


def _runs(experts: tuple[int, ...]) -> tuple[SliceRange, ...]:
    """Return ascending experts as runs of neighbours."""
    runs: list[SliceRange] = []
    for expert in experts:
        if runs and runs[-1].first + runs[-1].count == expert:
            runs[-1] = SliceRange(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(SliceRange(expert, 1))
    return tuple(runs)


def _entries(
    model: ModelHeader,
    mask: ExpertMask,
    mode: str,
    changes: dict[str, bytes],
    more: dict[str, str],
    *,
    drop_vision: bool = False,
) -> tuple[bytes, ...]:
    """Return the parent's metadata, byte for byte except for `changes`, and a record of the surgery."""
    first = model.files[0]
    if first.header.alignment < LEAST_ALIGNMENT:
        changes = {**changes, _ALIGNMENT_KEY: encode_entry(_ALIGNMENT_KEY, LEAST_ALIGNMENT)}
    record: dict[str, int | str] = {
        "coe.mask.mode": mode,
        "coe.mask.keep": mask.keep,
        "coe.mask.digest": mask.digest,
        "coe.mask.parent_fingerprint": model.fingerprint,
        "coe.mask.parent_expert_count": model.n_experts,
        "coe.mask.notice": safety_notice(mask.provenance.get("method")),
        **more,
    }
    kept = [
        changes.get(key) or first.raw_entry(key)
        for key in first.keys
        if key not in SHARD_KEYS
        and key not in record
        and not (drop_vision and is_key_of_other_part(model.architecture, key))
    ]
    added = (entry for key, entry in changes.items() if key not in first.keys)
    return (*kept, *added, *(encode_entry(key, value) for key, value in record.items()))


def check_finite(tensor: PlannedTensor, piece: SliceRange, data: bytes, where: str) -> bool:
    """Check that all numbers of a piece's slices, and so their norms, are finite, and 0 for zeroed ones.

    Args:
        tensor: The tensor.
        piece: The piece.
        data: The piece's bytes.
        where: The file, for messages.

    Returns:
        False if ggml cannot dequantise the type, so that nothing was checked.

    Raises:
        CoeError: A norm is wrong; names the expert.
    """
    if not core.has_norm(tensor.source.type):
        return False
    bad = core.first_not_finite(data, tensor.source.type, piece.count)
    if bad is not None:
        raise CoeError(
            f"{where}: {tensor.source.name} holds NaN or infinity in expert {piece.first + bad}; it is damaged"
        )
    if piece.zero and core.slice_norms(data, tensor.source.type, piece.count).any():
        raise CoeError(f"{where}: {tensor.source.name} holds a zeroed expert whose norm is not 0")
    return True


class Readers:
    """Files that are opened for reading when first used, by any thread, and closed together."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        self._lock = threading.Lock()

    def __getitem__(self, file: GgufFile) -> BinaryIO:
        with self._lock:
            if file.path not in self._open:
                self._open[file.path] = file.open()
            return self._open[file.path]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
