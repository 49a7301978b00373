"""Find how many experts fit into memory, without loading or writing any weights."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe_native.errors import InputError
from coe_native.llama.memory import MOST_CONTEXT, Memory, simulated_memory
from coe_native.llama.options import ModelOptions
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.surgery.plan import Plan, plan_copy, plan_prune


@dataclass(frozen=True)
class Fit:
    """The largest number of experts that fits.

    Attributes:
        keep: Experts in each layer.
        memory: The memory of a specialist with that many.
    """

    keep: int
    memory: Memory


def memory_of(
    moe: ModelHeader, keep: int, options: ModelOptions, *, types: Mapping[str, int] | None = None
) -> Memory:
    """Return the memory that a specialist with `keep` experts in each layer takes while it is used.

    llama.cpp loads a header with the specialist's tensors but no data, allocates nothing, and reports what it
    would have allocated: on the GPUs, or, on a machine without GPUs, in all.

    Args:
        moe: The parent.
        keep: Experts in each layer; all of them: the parent itself.
        options: How the model will be loaded.
        types: ggml's types of tensors in another quantisation, by their names; None: the parent's.

    Raises:
        InputError: The model cannot be cut to this number, or llama.cpp cannot load it.
    """
    moe.check_cut(keep)
    if max(options.n_ctx, options.n_batch) > MOST_CONTEXT:
        raise InputError(
            f"{moe.path}: llama.cpp cannot simulate a context of {options.n_ctx} tokens in little memory; use "
            f"{MOST_CONTEXT} at most"
        )
    with _header_only(moe, keep, types or {}) as path:
        try:
            return simulated_memory(path, options)
        except InputError as error:
            raise InputError(str(error).replace(str(path), str(moe.path))) from error


def largest_keep_that_fits(
    moe: ModelHeader, n_bytes: int, options: ModelOptions, *, types: Mapping[str, int] | None = None
) -> Fit:
    """Find the largest number of experts in each layer with which a specialist fits into memory.

    Args:
        moe: The parent.
        n_bytes: Bytes of memory (`memory_of`).
        options: How the model will be loaded.
        types: See `memory_of`.

    Raises:
        InputError: None fits (says what the smallest specialist takes), or the parent cannot be cut or
            loaded.
    """
    keeps = moe.possible_keeps
    if len(keeps) == 1:
        moe.check_cut(moe.n_experts - 1)  # raises an error with the reason why it cannot be cut

    def tried(index: int) -> Fit | None:
        memory = memory_of(moe, keeps[index], options, types=types)
        return Fit(keeps[index], memory) if memory.total <= n_bytes else None

    found = tried(len(keeps) - 1)
    low, high = 0, len(keeps) - 1 if found is None else 0
    while low < high:  # a model with more experts never takes less
        middle = (low + high) // 2
        fits = tried(middle)
        found, low, high = (fits, middle + 1, high) if fits else (found, low, middle)
    if found is None:
        least = memory_of(moe, keeps[0], options, types=types)
        raise InputError(
            f"{moe.path}: does not fit into {n_bytes >> 20} MiB: with {keeps[0]} experts a layer, the fewest "
            f"possible, and a context of {options.n_ctx} tokens it takes {-(-least.total >> 20)} MiB; "
            "a shorter context, or --n-cpu-moe on a GPU, needs less"
        )
    return found


fit = largest_keep_that_fits
"""The name of `largest_keep_that_fits` in version 0.1. It will be removed after the next version."""


def size_of_specialist(moe: ModelHeader, keep: int, *, types: Mapping[str, int] | None = None) -> int:
    """Return the size in bytes of a specialist's file, in the parent's types or in others."""
    return _plan(moe, keep, types or {}).n_bytes


def _plan(moe: ModelHeader, keep: int, types: Mapping[str, int]) -> Plan:
    """Return the plan of a specialist with any experts of the parent."""
    if keep == moe.n_experts:
        return plan_copy(moe).with_types(types)
    any_experts = tuple(moe.router_shape.best(np.zeros(moe.n_experts), keep))
    kept = dict.fromkeys(moe.blocks, any_experts)
    mask = ExpertMask(
        architecture=moe.architecture,
        fingerprint=moe.fingerprint,
        n_experts=moe.n_experts,
        keep=keep,
        kept=kept,
    )
    return plan_prune(moe, mask).with_types(types)


@contextlib.contextmanager
def _header_only(moe: ModelHeader, keep: int, types: Mapping[str, int]) -> Iterator[Path]:
    """Yield a sparse file that has the header and the size of a specialist."""
    plan = _plan(moe, keep, types)
    with tempfile.TemporaryDirectory(prefix="coe-native-") as directory:
        path = Path(directory) / "specialist.gguf"
        with path.open("wb") as file:
            file.write(plan.header())
            file.truncate(plan.n_bytes)
        yield path
