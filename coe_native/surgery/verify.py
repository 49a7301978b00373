"""Verify a written model: its contents against its parent and mask, and that llama.cpp runs it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coe_native.cores import checking_threads
from coe_native.errors import CoeError, InputError
from coe_native.files.prefetch import Prefetch, Range
from coe_native.files.reading import read_exactly
from coe_native.llama.options import ModelOptions
from coe_native.masks.check import check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import Tensor, begins_like_gguf
from coe_native.model.header import ModelHeader
from coe_native.model.sampler_defaults import changed_sampling
from coe_native.surgery.plan import (
    SHARD_KEYS,
    Plan,
    PlannedTensor,
    Readers,
    SliceRange,
    check_finite,
    plan_copy,
    plan_prune,
    plan_zero,
)
from coe_native.surgery.requantised import check_requantised
from coe_native.surgery.write import Report

# On the CPU and memory-mapped, because the parent may occupy the GPU, and may be larger than the memory.
_CHECKED_AS = ModelOptions(n_ctx=8, n_batch=8, n_gpu_layers=0, repack=False, mtp=True)


_WRITTEN_DIFFERENTLY = (
    *(b"coe.mask.parent_fingerprint", b"coe.mask.notice"),
    *(b"general.file_type", b"general.quantization_version", b"quantize.imatrix."),
)
"""Starts of metadata that depend on the version of coe-native or on options, or that a quantiser writes."""


@dataclass(frozen=True)
class Check:
    """One check of a model.

    Attributes:
        name: What was checked.
        passed: Whether it passed.
        detail: What was found, in a few words.
    """

    name: str
    passed: bool
    detail: str


def verify(
    out: str | Path, parent: str | Path, mask: ExpertMask | None, *, progress: Report = lambda done, total: None
) -> list[Check]:
    """Check a specialist, a zeroed or a requantised model against its parent and mask.

    The checks are: metadata; layout (names and shapes of all tensors); bytes (kept slices and untouched tensors
    equal the parent's, zeroed ones are zero); norms (all numbers finite); loads (llama.cpp runs a token); graph
    (llama.cpp runs operations of the same names and kinds as for the parent). If tensors have other types than
    the parent's, there is also quantisation: each of them, expert by expert, differs from the parent's values by
    no more than rounding to its type explains. A GGUF file whose header cannot be read, such as a truncated one,
    has one failed check.

    Args:
        out: The written model.
        parent: Its parent.
        mask: The mask; None: no experts were dropped.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: A file is not GGUF, or the mask is of another model.
        CoeError: A file changes while it is read.
    """
    parent_model = ModelHeader(parent)
    if mask is not None:
        check_mask(mask, parent_model)
    try:
        written = ModelHeader(out)
    except InputError as error:
        if not begins_like_gguf(Path(out)):
            raise
        return [Check("header", False, str(error))]
    if mask is None:
        plan = plan_copy(parent_model)
    elif written.surgery is not None and written.surgery.mode == "prune":
        dropped = bool(parent_model.mtp_blocks) and not written.mtp_blocks
        plan = plan_prune(
            parent_model,
            mask,
            drop_mtp=dropped,
            keep_vision=bool(written.other_parts),
            sampling=changed_sampling(written, parent_model),
        )
    else:
        plan = plan_zero(parent_model, mask)
    plan = plan.with_types({tensor.name: tensor.type for tensor in written.tensors.values()})
    abandoned = threading.Event()
    with ThreadPoolExecutor(1) as beside, contextlib.ExitStack() as leaving:
        leaving.callback(abandoned.set)
        running = beside.submit(_runs, written.path, parent_model.path, abandoned)
        checks = [_check("metadata", lambda: _metadata(written, plan, mask))]
        layout = _check("layout", lambda: _layout(written, plan))
        checks.append(layout)
        if layout.passed:
            checks += _contents(written, plan, "in the parent" if mask is None else "the mask says", progress)
            if any(planned.new_type is not None for planned in plan.tensors):
                checks.append(_check("quantisation", lambda: check_requantised(written, plan)))
        checks += running.result()
    written.check_unchanged()
    parent_model.check_unchanged()
    return checks


def _check(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, True, run())
    except CoeError as error:
        return Check(name, False, str(error))


def _runs(path: Path, parent: Path, abandoned: threading.Event) -> list[Check]:
    """Return the checks that run llama.cpp. Once `abandoned` is set, the result is not needed any more."""
    graph: list[str] = []
    checks = [_check("loads", lambda: _loads(path, graph))]
    if graph and not abandoned.is_set():
        checks.append(_check("graph", lambda: _same_graph(graph, parent)))
    return checks


def _raw_metadata(model: ModelHeader) -> list[bytes]:
    """Return all metadata as bytes, except for how the file is split."""
    first = model.files[0]
    return [first.raw_entry(key) for key in first.keys if key not in SHARD_KEYS]


def _metadata(written: ModelHeader, plan: Plan, mask: ExpertMask | None) -> str:
    done = written.surgery
    if mask is None and done is not None and plan.model.surgery is None:
        raise CoeError("was pruned or zeroed; give its mask too")
    if mask is not None and done is None:
        raise CoeError("has no record of a mask")
    if mask is not None and done is not None and done.digest != mask.digest:
        raise CoeError(f"was made with another mask ({done.digest[:12]}..., not {mask.digest[:12]}...)")
    in_place = done is not None and done.in_place
    expected = _raw_metadata(plan.model) if in_place else list(plan.entries)
    if _comparable(_raw_metadata(written)) != _comparable(expected):
        raise CoeError(
            "differs from the parent's in more than the number of experts, the temperature and repeat penalty, "
            "and the record of the mask"
        )
    if mask is None:
        return f"{len(expected)} entries"
    if not in_place and not plan.model.has_fingerprint(str(written.metadata("coe.mask.parent_fingerprint"))):
        raise CoeError("was made from another parent")
    return f"{len(expected)} entries, mask {mask.digest[:12]}..."


def _comparable(entries: list[bytes]) -> list[bytes]:
    """Return the entries without those that other versions of coe-native, or a quantiser, write differently."""
    return [entry for entry in entries if not entry[8:].startswith(_WRITTEN_DIFFERENTLY)]


def _layout(written: ModelHeader, plan: Plan) -> str:
    found = [(tensor.name, tensor.shape) for tensor in written.tensors.values()]
    expected = [(tensor.source.name, tensor.shape) for tensor in plan.tensors]
    if any(tensor.new_type is not None for tensor in plan.tensors):  # quantisers change the order
        found, expected = sorted(found), sorted(expected)
    for ours, theirs in zip(expected, found, strict=False):
        if ours != theirs:
            raise CoeError(f"has tensor {theirs[0]} {list(theirs[1])} instead of {ours[0]} {list(ours[1])}")
    if len(found) != len(expected):
        raise CoeError(f"has {len(found)} tensors, not {len(expected)}")
    # Zeroing in place appends to the file, and does not change its padding.
    if written.surgery is None or not written.surgery.in_place:
        shards = plan.shards([len(file.tensors) for file in written.files])
        for file, shard in zip(written.files, shards, strict=True):
            # Only the data is compared, because tools that merge shards add metadata.
            _, n_bytes = shard.layout()
            if file.size - file.header.data_offset != n_bytes:
                raise CoeError(
                    f"{file.path} has {file.size - file.header.data_offset} bytes of data, not {n_bytes}"
                )
    return f"{len(found)} tensors"


@dataclass(frozen=True)
class _Piece:
    """A piece of the plan, and its offset in the written model."""

    planned: PlannedTensor
    run: SliceRange
    tensor: Tensor
    offset: int

    @property
    def n_bytes(self) -> int:
        """Return its size in bytes."""
        return self.run.count * self.planned.slice_bytes

    def ranges(self, readers: Readers) -> Iterator[Range]:
        """Yield the ranges of files that its check reads."""
        yield readers[self.tensor.file], self.offset, self.n_bytes
        if not self.run.zero:
            yield readers[self.planned.source.file], *self.planned.where(self.run)


def _pieces(written: ModelHeader, plan: Plan) -> Iterator[_Piece]:
    for planned in plan.tensors:
        if planned.new_type is not None:
            continue
        tensor = written.tensors[planned.source.name]
        offset = tensor.offset
        for run in planned.pieces():
            piece = _Piece(planned=planned, run=run, tensor=tensor, offset=offset)
            yield piece
            offset += piece.n_bytes


@dataclass(frozen=True)
class _Finding:
    """What the check of a piece found.

    Attributes:
        different: How its bytes differ from the expected ones; empty if they do not.
        infinite: Which norm is not finite; empty if all are.
        n_finite: Slices with a finite norm.
    """

    different: str = ""
    infinite: str = ""
    n_finite: int = 0


def _contents(written: ModelHeader, plan: Plan, expected_by: str, progress: Report) -> tuple[Check, Check]:
    """Check bytes and norms. Everything is read once, by several threads."""
    total = sum(planned.n_bytes for planned in plan.tensors if planned.new_type is None)
    done = n_finite = 0
    different = infinite = ""
    unchecked: set[str] = set()
    with Readers() as readers, ThreadPoolExecutor(checking_threads(2 * plan.largest_piece)) as pool:
        pieces = list(_pieces(written, plan))
        prefetch = Prefetch(part for piece in pieces for part in piece.ranges(readers))
        prefetch.reading(0)
        for piece, finding in zip(pieces, pool.map(lambda piece: _look_at(piece, readers), pieces), strict=True):
            different = different or finding.different
            infinite = infinite or finding.infinite
            n_finite += finding.n_finite
            if piece.planned.touched and not (finding.n_finite or finding.infinite):
                unchecked.add(piece.tensor.type_name)
            done += piece.n_bytes
            prefetch.reading(sum(size for _, _, size in piece.ranges(readers)))
            progress(done, total)
    norms = f"{n_finite} slices finite"
    if unchecked:
        norms += f"; not checked because ggml cannot: {', '.join(sorted(unchecked))}"
    return (
        Check("bytes", not different, different or f"{done} bytes as {expected_by}"),
        Check("norms", not infinite, infinite or norms),
    )


def _look_at(piece: _Piece, readers: Readers) -> _Finding:
    planned = piece.planned
    found = read_exactly(readers[piece.tensor.file], piece.offset, piece.n_bytes)
    expected = planned.expected(readers[planned.source.file], piece.run)
    different = "" if found == expected else _first_difference(piece, found, expected)
    try:
        where = str(piece.tensor.file.path)
        checked = planned.touched and check_finite(planned, piece.run, found, where)
    except CoeError as error:
        return _Finding(different, str(error))
    return _Finding(different, n_finite=piece.run.count if checked else 0)


def _first_difference(piece: _Piece, found: bytes, expected: bytes) -> str:
    at = int(np.flatnonzero(np.frombuffer(found, np.uint8) != np.frombuffer(expected, np.uint8))[0])
    where = f"{piece.tensor.name} differs from the parent's"
    if piece.planned.touched:
        where += f" in its expert {piece.run.first + at // piece.planned.slice_bytes}"
    return f"{where}, at byte {piece.offset + at} of {piece.tensor.file.path}"


def _loads(path: Path, graph: list[str], options: ModelOptions = _CHECKED_AS) -> str:
    """Run a token, and add the operations of its graph to `graph`."""
    from coe_native.llama.loaded_model import LoadedModel

    with LoadedModel(path, options) as model, model.recording() as operations:
        outputs = model.outputs([0])
    if not np.isfinite(outputs).all():
        raise CoeError(f"{path}: llama.cpp computes numbers that are not finite")
    graph += operations
    return "llama.cpp runs it"


def _same_graph(graph: list[str], parent: Path) -> str:
    """Check that llama.cpp runs the same operations as for the parent, by names and kinds, not shapes.

    llama.cpp builds a graph from metadata and tensors; for some architectures, the number of experts matters
    too.
    """
    expected: list[str] = []
    # No graph that we know of depends on the vocabulary. If graphs differ or loading fails, it is read after all.
    with contextlib.suppress(CoeError):
        _loads(parent, expected, replace(_CHECKED_AS, token_texts=False))
    if expected != graph:
        expected.clear()
        _loads(parent, expected)
    for theirs, ours in itertools.zip_longest(expected, graph, fillvalue="nothing"):
        if theirs != ours:
            raise CoeError(f"llama.cpp computes {ours} where it computes {theirs} for the parent")
    return f"{len(graph)} operations, as for the parent"
