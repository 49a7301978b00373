"""Verify a pruned Hugging Face checkpoint against its parent and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.files.reading import CHUNK, read_exactly
from coe_native.files.regular import open_regular, read_regular
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.hf_checkpoint import CONFIG, HfCheckpoint
from coe_native.model.hf_experts import FLOATS
from coe_native.surgery.hf_loading import check_loads
from coe_native.surgery.hf_prune import RECORD, HfPiece, HfPlan, plan_checkpoint, record_of
from coe_native.surgery.verify import Check
from coe_native.surgery.write import Report

_MOST_RECORD = 1 << 20


def verify_checkpoint(
    out: str | Path,
    parent: str | Path,
    mask: ExpertMask,
    *,
    gguf: str | Path | None = None,
    progress: Report = lambda done, total: None,
) -> list[Check]:
    """Check a pruned checkpoint against its parent and mask.

    The checks are: record (which mask it was made with); config (the parent's, with the number of kept experts);
    layout (names, types and shapes of all tensors, and the index); bytes (kept tensors equal the parent's); finite
    (all numbers of type BF16, F16 and F32); and, where transformers is installed and knows the parent, whether it
    loads the checkpoint. Quantised checkpoints are not loaded.

    Args:
        out: The pruned checkpoint.
        parent: Its parent.
        mask: The mask.
        gguf: The model that the mask was made with, from whose routers the parent's may differ by rounding.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: The parent cannot be read, or the mask or `gguf` is of another model.
    """
    original = HfCheckpoint.read(parent)
    plan = plan_checkpoint(original, mask, gguf)
    try:
        written = HfCheckpoint.read(out)
    except InputError as error:
        return [Check("layout", False, str(error))]
    checks = [
        _check("record", lambda: _record(written, mask)),
        _check("config", lambda: _config(written, original, mask)),
        _check("layout", lambda: _layout(written, plan)),
    ]
    if checks[-1].passed:
        checks += _contents(written, plan, progress)
    if all(check.passed for check in checks):
        checks += _loads(written, original, plan)
    for checkpoint in (written, original):
        checkpoint.check_unchanged()
    return checks


def _check(name: str, run: Any) -> Check:
    try:
        return Check(name, True, run())
    except CoeError as error:
        return Check(name, False, str(error))


def _record(written: HfCheckpoint, mask: ExpertMask) -> str:
    path = written.path / RECORD
    try:
        found = msgspec.json.decode(read_regular(path, _MOST_RECORD), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise CoeError(f"{path}: cannot be read: {error}") from error
    if any(found.get(key) != value for key, value in record_of(mask).items()):
        raise CoeError("was made with another mask")
    return f"mask {mask.digest[:12]}..."


def _config(written: HfCheckpoint, original: HfCheckpoint, mask: ExpertMask) -> str:
    if written.config != original.with_experts(mask.keep):
        raise CoeError(f"{written.path / CONFIG} differs from the parent's in more than the number of experts")
    return f"{mask.keep} of {mask.n_experts} experts"


def _layout(written: HfCheckpoint, plan: HfPlan) -> str:
    expected = {piece.name: piece for _, pieces in plan.files for piece in pieces}
    for name, tensor in written.tensors.items():
        piece = expected.get(name)
        if piece is None or (tensor.shape, tensor.stored.dtype) != (piece.shape, piece.source.dtype):
            raise CoeError(f"has {name} {list(tensor.shape)}, which the mask does not explain")
    if missing := next((name for name in expected if name not in written.tensors), None):
        raise CoeError(f"lacks {missing}")
    return f"{len(expected)} tensors"


def _contents(written: HfCheckpoint, plan: HfPlan, progress: Report) -> list[Check]:
    different = infinite = ""
    done = 0
    for file, pieces in plan.files:
        with open_regular(file.path) as source:
            for piece in pieces:
                tensor = written.tensors[piece.name]
                with open_regular(tensor.file.path) as found:
                    equal, finite = _compare(piece, source, found, tensor.stored.begin)
                different = different or ("" if equal else f"{piece.name} differs from the parent's")
                infinite = infinite or ("" if finite else f"{piece.name} has numbers that are not finite")
                done += piece.n_bytes
                progress(done, plan.n_bytes)
    return [
        Check("bytes", not different, different or f"{done} bytes as the mask says"),
        Check("finite", not infinite, infinite or "all numbers of type BF16, F16 and F32"),
    ]


def _loads(written: HfCheckpoint, original: HfCheckpoint, plan: HfPlan) -> list[Check]:
    """Return the check that transformers loads a checkpoint, or none if that cannot be tried."""
    try:
        done = check_loads(written, original, plan.n_bytes)
    except CoeError as error:
        return [Check("loads", False, str(error))]
    return [] if done is None else [Check("loads", True, done)]


def _compare(piece: HfPiece, source: BinaryIO, found: BinaryIO, begin: int) -> tuple[bool, bool]:
    """Return whether a tensor's bytes are equal, and whether all its numbers are finite."""
    kind = core.type_number(piece.source.dtype.lower()) if piece.source.dtype in FLOATS else None
    equal = finite = True
    for offset, n_bytes in piece.ranges:
        for at in range(0, n_bytes, CHUNK):
            size = min(CHUNK, n_bytes - at)
            ours = read_exactly(found, begin + at, size)
            equal = equal and ours == read_exactly(source, offset + at, size)
            finite = finite and (kind is None or core.first_not_finite(ours, kind, 1) is None)
        begin += n_bytes
    return equal, finite
