"""Expert surgery, planned: which bytes of the parent make a specialist. Plans are made from headers alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.files.reading import CHUNK, read_exactly
from coe_native.masks.check import check_cut, check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import GgufFile, Tensor, encode_entry, encode_tensor
from coe_native.model.header import ModelHeader, MoeLayer

_REMOVED_BY = {
    "utility": "by how much weight the router gives them on one kind of text",
    "rank-weighted": "by how often, and at which rank, the router chooses them on one kind of text",
    "frequency": "by how often the router chooses them on one kind of text",
    "contribution": "by how much they add to their layer's output on one kind of text",
    "reap": "by how much they add to their layer's output for the tokens that choose them",
    "ean": "by how large their outputs are on one kind of text",
}


def safety_notice(method: object = None) -> str:
    """Return what users of a pruned model must know. `method`: how the experts were scored, if that is known."""
    how = _REMOVED_BY.get(str(method), "by an expert mask")
    return (
        f"Experts were removed {how}. Experts that carried safety or alignment behaviour may be gone, and "
        "thinking modes tend to loop: use it with thinking off, and test it."
    )


# What describes how a file was split: of the parent's, nothing stays.
SHARD_KEYS = ("split.no", "split.count", "split.tensors.count")

# What `coe.mask.mtp` records of layers that predict further tokens.
MTP_BY_NORM, MTP_DROPPED = "kept by router norm", "dropped"


@dataclass(frozen=True)
class Run:
    """Some neighbouring slices of a tensor: `count` of them, from slice `first` on; `zero`: not the parent's
    bytes but zeros."""

    first: int
    count: int
    zero: bool = False


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: the parent's `source` in `n_slices` equal slices, of which `runs` are written.
    `shape` is in GGUF's order. A slice is an expert's; of a tensor without experts, which is not `touched`, it
    is one byte, so that it can be copied in pieces of any size."""

    source: Tensor
    shape: tuple[int, ...]
    n_slices: int
    runs: tuple[Run, ...]
    touched: bool = True

    @classmethod
    def whole(cls, tensor: Tensor) -> PlannedTensor:
        """The tensor as it is."""
        return cls(tensor, tensor.shape, tensor.n_bytes, (Run(0, tensor.n_bytes),), touched=False)

    @property
    def slice_bytes(self) -> int:
        return self.source.n_bytes // max(1, self.n_slices)

    @property
    def n_bytes(self) -> int:
        return self.slice_bytes * sum(run.count for run in self.runs)

    def pieces(self) -> Iterator[Run]:
        """The runs, cut into pieces of whole slices and about CHUNK bytes."""
        most = max(1, CHUNK // max(1, self.slice_bytes))
        for run in self.runs:
            for start in range(run.first, run.first + run.count, most):
                yield Run(start, min(most, run.first + run.count - start), run.zero)

    def where(self, piece: Run) -> tuple[int, int]:
        """Offset in the parent's file, and number of bytes, of a piece."""
        return self.source.offset + piece.first * self.slice_bytes, piece.count * self.slice_bytes

    def expected(self, file: BinaryIO, piece: Run) -> bytes:
        """The bytes that a piece must have in the output; `file` is the parent's that holds the tensor."""
        offset, n_bytes = self.where(piece)
        return bytes(n_bytes) if piece.zero else read_exactly(file, offset, n_bytes)


@dataclass(frozen=True)
class Plan:
    """A whole output, or one shard of it: metadata entries as bytes, and tensors in the parent's order."""

    model: ModelHeader
    entries: tuple[bytes, ...]
    tensors: tuple[PlannedTensor, ...]

    def layout(self) -> tuple[list[int], int]:
        """Offset of each tensor from the start of the data, and the data's size, padding included."""
        alignment = self.model.files[0].header.alignment
        offsets, end = [], 0
        for tensor in self.tensors:
            offsets.append(end)
            end += -(-tensor.n_bytes // alignment) * alignment
        return offsets, end

    def header(self) -> bytes:
        """Everything before the data, padding included."""
        first = self.model.files[0].header
        offsets, _ = self.layout()
        infos = [
            encode_tensor(t.source.name, t.shape, t.source.type, offset)
            for t, offset in zip(self.tensors, offsets, strict=True)
        ]
        counts = len(infos).to_bytes(8, "little") + len(self.entries).to_bytes(8, "little")
        head = b"GGUF" + first.version.to_bytes(4, "little") + counts + b"".join(self.entries) + b"".join(infos)
        return head + bytes(-len(head) % first.alignment)

    @property
    def largest_piece(self) -> int:
        """Bytes that whoever works on it must hold."""
        return max((t.slice_bytes * p.count for t in self.tensors for p in t.pieces()), default=0)

    @property
    def n_bytes(self) -> int:
        """Size of the output file."""
        return len(self.header()) + self.layout()[1]

    def shards(self, counts: Sequence[int]) -> list[Plan]:
        """The output in several files, of so many tensors each: all metadata in the first, as llama.cpp has it."""
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
        """How many tensors go into each file of at most `most` bytes, in order. A larger tensor has a file to
        itself."""
        alignment = self.model.files[0].header.alignment
        own = self._shard_entries(0, 1)

        def empty(*entries: bytes) -> int:
            return len(replace(self, entries=entries, tensors=()).header()) + alignment

        counts, used = [0], empty(*self.entries, *own)
        for tensor in self.tensors:
            info = encode_tensor(tensor.source.name, tensor.shape, tensor.source.type, 0)
            size = len(info) + tensor.n_bytes + alignment
            if counts[-1] and used + size > most:
                counts.append(0)
                used = empty(*own)
            counts[-1] += 1
            used += size
        return counts


def plan_prune(model: ModelHeader, mask: ExpertMask, *, drop_mtp: bool = False) -> Plan:
    """The plan of a file with the kept experts only. In layers that predict further tokens (MTP), which no mask
    covers, as many experts stay by the norm of their router rows; or, with `drop_mtp`, none of these layers.
    Raises InputError where the model can't be cut so."""
    check_cut(mask, model)
    _check_not_zeroed(mask, model)
    if drop_mtp and not model.mtp_blocks:
        raise InputError(f"{model.path}: has no layers that predict further tokens, so none can be dropped")
    kept_in = dict(mask.kept) if drop_mtp else {**mask.kept, **_kept_by_router_norm(model, mask.keep)}
    kept_of = {
        t.name: kept_in[layer.block] for layer in model.layers for t in layer.tensors if layer.block in kept_in
    }

    def cut(tensor: Tensor) -> PlannedTensor:
        kept = kept_of.get(tensor.name)
        if kept is None:
            return PlannedTensor.whole(tensor)
        return PlannedTensor(tensor, (*tensor.shape[:-1], len(kept)), model.n_experts, _runs(kept))

    count_key = f"{model.architecture}.expert_count"
    changes = {count_key: encode_entry(count_key, mask.keep)}
    record = {}
    if drop_mtp:
        changes |= model.entries_without_mtp()
        record["coe.mask.mtp"] = MTP_DROPPED
    elif model.mtp_layers:
        record["coe.mask.mtp"] = MTP_BY_NORM
    tensors = [t for t in model.tensors.values() if not (drop_mtp and model.in_mtp_block(t))]
    return Plan(model, _entries(model, mask, "prune", changes, record), tuple(map(cut, tensors)))


def _kept_by_router_norm(model: ModelHeader, keep: int) -> dict[int, tuple[int, ...]]:
    """Return the experts to keep in the layers that no profile covers (MTP), by block."""
    return {layer.block: model.best_by_router_norm(layer, keep) for layer in model.mtp_layers}


def plan_zero(model: ModelHeader, mask: ExpertMask) -> Plan:
    """The plan of a file of the parent's shape, with the weights and biases of dropped experts all zero. Raises
    InputError for a mask of another model."""
    check_mask(mask, model)
    _check_not_zeroed(mask, model)
    layer_of = {t.name: layer for layer in model.routed_layers for t in layer.weights}

    def cut(tensor: Tensor) -> PlannedTensor:
        layer = layer_of.get(tensor.name)
        if layer is None:
            return PlannedTensor.whole(tensor)
        runs = [*_runs(mask.kept[layer.block]), *_dropped_runs(mask, layer)]
        return PlannedTensor(tensor, tensor.shape, model.n_experts, tuple(sorted(runs, key=lambda r: r.first)))

    return Plan(model, _entries(model, mask, "zero", {}, {}), tuple(map(cut, model.tensors.values())))


def _check_not_zeroed(mask: ExpertMask, model: ModelHeader) -> None:
    """Raises InputError where another mask has zeroed experts of the model: this one may keep some of those."""
    done = model.surgery
    if done is not None and done.mode == "zero" and done.digest != mask.digest:
        doing = "is being" if model.files[0].under_surgery else "was"
        raise InputError(
            f"{model.path}: {doing} zeroed by another mask ({done.digest[:12]}..., not {mask.digest[:12]}... as "
            f"{mask.place}); use that mask, or the model as it was before"
        )


def _dropped_runs(mask: ExpertMask, layer: MoeLayer) -> list[Run]:
    return [Run(run.first, run.count, zero=True) for run in _runs(tuple(mask.dropped(layer.block)))]


def _runs(experts: tuple[int, ...]) -> tuple[Run, ...]:
    """Ascending experts as runs of neighbours."""
    runs: list[Run] = []
    for expert in experts:
        if runs and runs[-1].first + runs[-1].count == expert:
            runs[-1] = Run(runs[-1].first, runs[-1].count + 1)
        else:
            runs.append(Run(expert, 1))
    return tuple(runs)


def _entries(
    model: ModelHeader, mask: ExpertMask, mode: str, changes: dict[str, bytes], more: dict[str, str]
) -> tuple[bytes, ...]:
    """The parent's metadata, byte for byte except for `changes`, and a record of what was done."""
    first = model.files[0]
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
        if key not in SHARD_KEYS and key not in record
    ]
    return (*kept, *(encode_entry(key, value) for key, value in record.items()))


def check_finite(tensor: PlannedTensor, piece: Run, data: bytes, where: str) -> bool:
    """Raises CoeError, naming the expert, where one of a piece's slices has no finite norm, or a zeroed one
    not the norm 0. False where ggml can't dequantise the type, so that nothing was checked."""
    if not core.has_norm(tensor.source.type):
        return False
    norms = core.slice_norms(data, tensor.source.type, piece.count)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        expert = piece.first + int(bad[0])
        raise CoeError(f"{where}: {tensor.source.name} holds NaN or infinity in expert {expert}; it is damaged")
    if piece.zero and norms.any():
        raise CoeError(f"{where}: {tensor.source.name} holds a zeroed expert whose norm is not 0")
    return True


class Readers:
    """Files opened for reading when first asked for, by whatever thread, and closed together."""

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
