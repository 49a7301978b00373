"""What a specialist can be made of: files of one model, and the types that they can be quantised to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coe_native.errors import CoeError, InputError
from coe_native.llama.options import ModelOptions
from coe_native.llama.quantizer import TYPES, QuantizeOptions
from coe_native.model.header import ModelHeader
from coe_native.model.imatrix_file import Imatrix, ImatrixEntry
from coe_native.surgery.fit import largest_keep_that_fits, memory_of, size_of_specialist
from coe_native.surgery.quantize import plan_quantization

_CLEARLY_LARGER = 1.1
"""Types whose sizes differ by less may lose less though they are smaller."""


@dataclass(frozen=True)
class Candidate:
    """One file or type, with the number of experts that is tried.

    Attributes:
        name: The file's name, or the type's.
        source: The file that it is made of.
        file_type: The type to quantise the source to; None: it stays as it is.
        types: ggml's types of its tensors by their names, where they are not the source's.
        whole_bytes: Its size with all experts.
        keep: Experts to keep in each layer.
        n_bytes: Size of the specialist.
        memory: Bytes that the specialist takes in use, if that was asked for.
        skipped: Why it is not judged; empty if it is.
    """

    name: str
    source: ModelHeader
    file_type: str | None
    types: dict[str, int]
    whole_bytes: int
    keep: int
    n_bytes: int
    memory: int | None = None
    skipped: str = ""


def find_candidates(
    files: Sequence[ModelHeader],
    types: Iterable[str],
    *,
    only_types: bool = False,
    keep: int | None = None,
    fit_bytes: int | None = None,
    use: ModelOptions | None = None,
) -> list[Candidate]:
    """Return the files and types that a specialist can be made of, from the largest to the smallest.

    Each has the given number of experts, or the largest that fits into memory, or all. Skipped are types that
    cannot be made, and with `fit_bytes` those that do not fit, and those that another one beats in both: it keeps
    as many experts, and has clearly more bits.

    Args:
        files: Files of one model. The largest one is quantised to the types.
        types: Names of llama.cpp's file types.
        only_types: Whether the files themselves are no candidates.
        keep: Experts to keep in each layer; None: as many as fit, or all.
        fit_bytes: Bytes of memory to fit into; None: any.
        use: How the specialist will be used, with `fit_bytes`.

    Raises:
        InputError: A type is unknown, or the model cannot be cut to `keep`.
    """
    best = max(files, key=lambda header: header.n_bytes)
    if keep is not None:
        best.check_cut(keep)
    found = [] if only_types else [_given(header) for header in files]
    found += _quantised(best, types) if only_types else _smaller(_quantised(best, types), files, best)
    sized = [c if c.skipped else _sized(c, keep, fit_bytes, use) for c in found]
    sized.sort(key=lambda candidate: -candidate.whole_bytes)
    # Where the smallest is looked for, fewer bits are no disadvantage.
    return sized if fit_bytes is None else [_unless_beaten(candidate, sized) for candidate in sized]


def _given(header: ModelHeader) -> Candidate:
    size = header.specialist_bytes(header.n_experts)
    return Candidate(header.path.name, header, None, {}, size, header.n_experts, size)


def _type_of(best: ModelHeader, file_type: str, types: dict[str, int], size: int, skipped: str = "") -> Candidate:
    return Candidate(file_type, best, file_type, types, size, best.n_experts, size, skipped=skipped)


def _smaller(candidates: Iterable[Candidate], files: Sequence[ModelHeader], best: ModelHeader) -> list[Candidate]:
    """Return candidates, with those skipped that are given as files, or are not smaller than the best file."""
    given = {header.metadata("general.file_type"): header.path.name for header in files}
    found = []
    for candidate in candidates:
        name = given.get(TYPES[candidate.file_type or ""])
        reason = candidate.skipped
        if name is not None:
            reason = f"{name} has this type"
        elif not reason and candidate.whole_bytes >= best.n_bytes:
            reason = f"not smaller than {best.path.name}"
        found.append(replace(candidate, skipped=reason))
    return found


def _quantised(best: ModelHeader, types: Iterable[str]) -> list[Candidate]:
    """Return the types that the best file can be quantised to."""
    found = []
    with tempfile.TemporaryDirectory(prefix="coe-native-") as directory:
        # Which types tensors get depends on whether there is an importance matrix, and not on its values.
        imatrix = Path(directory) / "imatrix.gguf"
        _blank_imatrix(best).save(imatrix)
        for file_type in dict.fromkeys(QuantizeOptions(name).file_type for name in types):
            try:
                planned = plan_quantization(best.path, QuantizeOptions(file_type), imatrix=imatrix)
            except InputError:
                raise
            except CoeError as error:
                found.append(_type_of(best, file_type, {}, 0, str(error)))
                continue
            found.append(_type_of(best, file_type, planned.type_numbers, planned.n_bytes))
    return found


def _blank_imatrix(header: ModelHeader) -> Imatrix:
    """Return an importance matrix for which all columns are equal, of the blocks that run for every token."""
    never_run = tuple(f"blk.{block}." for block in header.mtp_blocks)
    entries = {}
    for name, tensor in header.tensors.items():
        is_run = name.startswith("blk.") and not name.startswith(never_run)
        if is_run and name.endswith(".weight") and len(tensor.shape) > 1:
            n_matrices = tensor.shape[2] if len(tensor.shape) > 2 else 1
            ones = np.ones((n_matrices, tensor.shape[0]), np.float32)
            entries[name] = ImatrixEntry(ones, np.ones(n_matrices, np.float32))
    return Imatrix(entries, (), 1, 1)


def _sized(candidate: Candidate, keep: int | None, fit_bytes: int | None, use: ModelOptions | None) -> Candidate:
    """Return a candidate with the number of experts that it keeps, and its size and memory."""
    source, types = candidate.source, candidate.types or None
    memory = None
    try:
        if fit_bytes is not None and use is not None:
            if keep is None:
                fitting = largest_keep_that_fits(source, fit_bytes, use, types=types)
                keep, memory = fitting.keep, fitting.memory.total
            else:
                memory = memory_of(source, keep, use, types=types).total
                if memory > fit_bytes:
                    return replace(candidate, keep=keep, memory=memory, skipped="does not fit")
        keep = source.n_experts if keep is None else keep
    except InputError as error:
        reason = str(error).removeprefix(f"{source.path}: ")
        return replace(candidate, skipped=reason.split(";")[0])
    size = size_of_specialist(source, keep, types=types)
    return replace(candidate, keep=keep, memory=memory, n_bytes=size)


def _unless_beaten(candidate: Candidate, others: Sequence[Candidate]) -> Candidate:
    """Return a candidate, marked as skipped if another one is better in any case."""
    if candidate.skipped:
        return candidate
    for other in others:
        larger = other.whole_bytes > _CLEARLY_LARGER * candidate.whole_bytes
        if not other.skipped and larger and other.keep >= candidate.keep:
            kept = f"{other.keep} experts fit" if other.keep < other.source.n_experts else "all experts fit"
            return replace(candidate, skipped=f"{kept} with {other.name}, which has more bits")
    return candidate
