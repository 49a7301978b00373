"""Check requantised tensors: what differs from the parent's values must be rounding."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coe_native._native import core
from coe_native.cores import checking_threads
from coe_native.errors import CoeError
from coe_native.files.reading import CHUNK, read_exactly
from coe_native.model.gguf_file import Tensor
from coe_native.model.header import ModelHeader
from coe_native.surgery.plan import Plan, PlannedTensor, Readers

_MANTISSA_BITS = {"F32": 23, "F16": 10, "BF16": 7}

_MARGIN = 4.0
"""The bound over the usual difference. Importance matrices round columns unevenly."""

_MOST = 0.9
"""The largest bound: a tensor of zeros differs by 1, another expert by more."""

_OVER_OTHERS = 1.75
"""How much more than half of the tensor's experts an expert may differ. Measured: 1.15 at most."""

_FEWEST = 4
"""Experts of which the median says something."""


def largest_difference(type_name: str) -> float:
    """Return how far a tensor of a type may differ from the values that were quantised, relative to their norm.

    Rounding to ``b`` bits for a weight costs about 2^-b of the norm.
    """
    mantissa = _MANTISSA_BITS.get(type_name)
    if mantissa is not None:
        return math.ldexp(1.0, -mantissa)
    values = 256  # a multiple of every type's block
    bits = core.tensor_bytes(type_name.lower(), (values,)) * 8 / values
    return min(_MOST, _MARGIN * math.pow(2.0, -bits))


@dataclass(frozen=True)
class _Difference:
    """How far a slice differs: the squared norms of the difference and of the parent's values."""

    slice: str
    of_difference: float
    of_parent: float

    @property
    def share(self) -> float:
        """Return the norm of the difference relative to the parent's; infinite if it is not a number."""
        if self.of_difference == 0.0:
            return 0.0
        share = self.of_difference / self.of_parent if self.of_parent else math.inf
        return math.sqrt(share) if math.isfinite(share) else math.inf


def check_requantised(written: ModelHeader, plan: Plan) -> str:
    """Check all tensors of other types than the parent's, expert by expert.

    Args:
        written: The written model.
        plan: What it should be, with its types.

    Returns:
        What was found, in a few words.

    Raises:
        CoeError: A tensor differs by more than rounding to its type explains, or ggml cannot dequantise one.
    """
    retyped = [planned for planned in plan.tensors if planned.new_type is not None]
    tensors = [written.tensors[planned.source.name] for planned in retyped]
    worst, most = "", -1.0
    with Readers() as readers, ThreadPoolExecutor(checking_threads(2 * CHUNK)) as pool:
        found = pool.map(lambda planned, tensor: _slices(planned, tensor, readers), retyped, tensors)
        for tensor, slices in zip(tensors, found, strict=True):
            _check_slices(tensor, slices)
            largest = max(slices, key=lambda difference: difference.share)
            if largest.share > most:
                worst, most = f"{largest.slice}, {tensor.type_name}", largest.share
    return f"{len(retyped)} tensors requantised; the largest difference is {most:.2%} of the norm ({worst})"


def _check_slices(tensor: Tensor, slices: Sequence[_Difference]) -> None:
    """Check that all slices of a tensor differ by no more than rounding explains."""
    bound = largest_difference(tensor.type_name)
    if len(slices) >= _FEWEST:
        median = statistics.median(difference.share for difference in slices)
        bound = min(bound, _OVER_OTHERS * median) if median > 0 else bound
    for difference in slices:
        if difference.share == math.inf:
            raise CoeError(f"{difference.slice} holds NaN or infinity, or values where the parent has none")
        if difference.share > bound:
            raise CoeError(
                f"{difference.slice} differs from the parent's by {difference.share:.1%} of its norm; rounding to "
                f"{tensor.type_name} explains {bound:.1%}"
            )


def _slices(planned: PlannedTensor, tensor: Tensor, readers: Readers) -> list[_Difference]:
    """Return the difference of each expert, or of the whole tensor."""
    if not (core.has_norm(planned.source.type) and core.has_norm(tensor.type)):
        raise CoeError(f"{tensor.name}: ggml cannot dequantise {planned.source.type_name} or {tensor.type_name}")
    return list(_differences(planned, tensor, readers))


def _differences(planned: PlannedTensor, tensor: Tensor, readers: Readers) -> Iterator[_Difference]:
    """Yield the difference of each expert, or of the whole tensor."""
    source = planned.source
    if planned.touched:
        experts = [(run.first + i, run.zero) for run in planned.runs for i in range(run.count)]
    else:
        experts = [(0, False)]
    if math.prod(tensor.shape[1:]) % len(experts):
        raise CoeError(f"{tensor.name} is of {tensor.type_name}, and has no rows for each expert")
    n_rows = math.prod(tensor.shape[1:]) // len(experts)
    our_row = tensor.n_bytes // (n_rows * len(experts))
    their_row = source.n_bytes // math.prod(source.shape[1:])
    at_once = max(1, CHUNK // max(their_row, our_row))
    for place, (expert, is_zero) in enumerate(experts):
        of_difference = of_parent = 0.0
        for row in range(0, n_rows, at_once):
            count = min(at_once, n_rows - row)
            at = tensor.offset + (place * n_rows + row) * our_row
            ours = read_exactly(readers[tensor.file], at, count * our_row)
            at = source.offset + (expert * n_rows + row) * their_row
            theirs = read_exactly(readers[source.file], at, count * their_row)
            theirs = bytes(len(theirs)) if is_zero else theirs
            of_difference += core.slice_differences(ours, tensor.type, theirs, source.type, 1).item() ** 2
            of_parent += core.slice_norms(theirs, source.type, 1).item() ** 2
        slice_name = f"expert {expert} of {tensor.name}" if planned.touched else tensor.name
        yield _Difference(slice_name, of_difference, of_parent)
