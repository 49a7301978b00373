"""Expert surgery: which bytes of the parent make a specialist, and writing them.

A plan is made from headers alone; writing streams it, so memory stays flat whatever the file's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from coe_native._native import core
from coe_native.atomic import check_target, replacing
from coe_native.cores import available_cores
from coe_native.errors import CoeError, InputError
from coe_native.gguf_file import CHUNK, GgufFile, Tensor, encode_entry, encode_tensor, read_exactly
from coe_native.masking import ExpertMask, check_mask
from coe_native.moe_model import MoeLayer, MoeModel

SAFETY_NOTICE = (
    "Experts were removed by how often one kind of text uses them. Experts that carried safety or alignment "
    "behaviour may be gone, and thinking modes tend to loop: use it with thinking off, and test it."
)

# What describes how a file was split: the output is one file.
SHARD_KEYS = ("split.no", "split.count", "split.tensors.count")

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def _quiet(done: int, total: int) -> None:
    pass


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

    def expected(self, file: BinaryIO, piece: Run) -> bytes:
        """The bytes that a piece must have in the output; `file` is the parent's that holds the tensor."""
        n_bytes = piece.count * self.slice_bytes
        if piece.zero:
            return bytes(n_bytes)
        return read_exactly(file, self.source.offset + piece.first * self.slice_bytes, n_bytes)


@dataclass(frozen=True)
class Plan:
    """A whole output: metadata entries as bytes, and tensors in the parent's order."""

    model: MoeModel
    mode: str
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
    def n_bytes(self) -> int:
        """Size of the output file."""
        return len(self.header()) + self.layout()[1]


def plan_prune(model: MoeModel, mask: ExpertMask) -> Plan:
    """The plan of a file with the kept experts only. Raises InputError where the model can't be cut so."""
    check_mask(mask, model)
    if model.n_groups > 1:
        raise InputError(
            f"{model.path}: chooses among {model.n_groups} groups of experts, which pruning would leave uneven"
        )
    unseen = [layer.block for layer in model.layers if layer.block not in mask.kept]
    if unseen:
        raise InputError(f"{model.path}: has experts in blocks {unseen} that never run, so no mask covers them")
    kept_of = {t.name: mask.kept[layer.block] for layer in model.layers for t in layer.tensors}

    def cut(tensor: Tensor) -> PlannedTensor:
        kept = kept_of.get(tensor.name)
        if kept is None:
            return PlannedTensor.whole(tensor)
        return PlannedTensor(tensor, (*tensor.shape[:-1], len(kept)), model.n_experts, _runs(kept))

    changes = {f"{model.architecture}.expert_count": mask.keep}
    return Plan(model, "prune", _entries(model, mask, "prune", changes), tuple(map(cut, model.tensors.values())))


def plan_zero(model: MoeModel, mask: ExpertMask) -> Plan:
    """The plan of a file of the parent's shape, with the weights and biases of dropped experts all zero."""
    check_mask(mask, model)
    layer_of = {t.name: layer for layer in model.routed_layers for t in layer.weights}

    def cut(tensor: Tensor) -> PlannedTensor:
        layer = layer_of.get(tensor.name)
        if layer is None:
            return PlannedTensor.whole(tensor)
        runs = [*_runs(mask.kept[layer.block]), *_dropped_runs(mask, layer)]
        return PlannedTensor(tensor, tensor.shape, model.n_experts, tuple(sorted(runs, key=lambda r: r.first)))

    return Plan(model, "zero", _entries(model, mask, "zero", {}), tuple(map(cut, model.tensors.values())))


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


def _entries(model: MoeModel, mask: ExpertMask, mode: str, changes: dict[str, int]) -> tuple[bytes, ...]:
    """The parent's metadata, byte for byte except for `changes`, and a record of what was done."""
    first = model.files[0]
    record: dict[str, int | str] = {
        "coe.mask.mode": mode,
        "coe.mask.keep": mask.keep,
        "coe.mask.digest": mask.digest,
        "coe.mask.parent_fingerprint": model.fingerprint,
        "coe.mask.parent_expert_count": model.n_experts,
        "coe.mask.notice": SAFETY_NOTICE,
    }
    kept = [
        encode_entry(key, changes[key]) if key in changes else first.raw_entry(key)
        for key in first.keys
        if key not in SHARD_KEYS and key not in record
    ]
    return (*kept, *(encode_entry(key, value) for key, value in record.items()))


def prune(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Writes the specialist: a GGUF with the kept experts only, their blocks byte for byte. `inputs`: files
    beside the parent's that `out` must not be, whatever `force` says.

    Raises InputError for a mask of another model or an unusable `out`, CoeError where a kept expert holds a
    value that is not finite; then no output is left.
    """
    return _write(plan_prune(MoeModel(parent), mask), Path(out), force, inputs, progress)


def zero(
    parent: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = _quiet,
) -> Path:
    """Writes the parent with the dropped experts' weights and biases zeroed. Its router can still choose them,
    so it is for study. Raises like `prune`."""
    return _write(plan_zero(MoeModel(parent), mask), Path(out), force, inputs, progress)


def zero_in_place(parent: str | Path, mask: ExpertMask, *, progress: Report = _quiet) -> int:
    """Zeroes the dropped experts' weights and biases in the parent itself; returns the bytes zeroed.

    Kept experts are not touched. There is no way back without a copy of the file.
    """
    model = MoeModel(parent)
    plan = plan_zero(model, mask)
    work = [(tensor, piece) for tensor in plan.tensors for piece in tensor.pieces() if piece.zero]
    total = sum(piece.count * tensor.slice_bytes for tensor, piece in work)
    done = 0
    try:
        for gguf in model.files:
            with gguf.path.open("r+b") as file:
                for tensor, piece in work:
                    if tensor.source.file is gguf:
                        file.seek(tensor.source.offset + piece.first * tensor.slice_bytes)
                        file.write(bytes(piece.count * tensor.slice_bytes))
                        done += piece.count * tensor.slice_bytes
                        progress(done, total)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise CoeError(
            f"{parent}: could not be zeroed to the end ({error.strerror or error}); run the same command again"
        ) from error
    return total


def _write(plan: Plan, out: Path, force: bool, inputs: tuple[Path, ...], progress: Report) -> Path:
    check_target(out, force=force, inputs=(*plan.model.paths, *inputs))
    _, total = plan.layout()
    alignment = plan.model.files[0].header.alignment
    with Readers() as readers, replacing(out) as target:
        target.write(plan.header())
        done = 0
        for tensor in plan.tensors:
            for piece in tensor.pieces():
                data = tensor.expected(readers[tensor.source.file], piece)
                if tensor.touched:
                    check_finite(tensor, piece, data, str(plan.model.path))
                target.write(data)
                done += len(data)
                progress(done, total)
            target.write(bytes(-tensor.n_bytes % alignment))
        progress(total, total)
    return out


def check_finite(tensor: PlannedTensor, piece: Run, data: bytes, where: str) -> bool:
    """Raises CoeError, naming the expert, where one of a piece's slices has no finite norm, or a zeroed one
    not the norm 0. False where ggml can't dequantise the type, so that nothing was checked."""
    if not core.has_norm(tensor.source.type):
        return False
    norms = core.slice_norms(data, tensor.source.type, piece.count, available_cores())
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        expert = piece.first + int(bad[0])
        raise CoeError(f"{where}: {tensor.source.name} holds NaN or infinity in expert {expert}; it is damaged")
    if piece.zero and norms.any():
        raise CoeError(f"{where}: {tensor.source.name} holds a zeroed expert whose norm is not 0")
    return True


class Readers:
    """Files opened for reading when first asked for, closed together."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def __getitem__(self, file: GgufFile) -> BinaryIO:
        if file.path not in self._open:
            self._open[file.path] = file.open()
        return self._open[file.path]

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
