"""How much memory a model takes, by llama.cpp's own accounts, and what to lower where it does not fit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.llama.options import ModelOptions
from coe_native.llama.text_only import loadable
from coe_native.model.header import ModelHeader

MOST_CONTEXT = 1 << 22
"""Tokens. llama.cpp lists each token of a context, allocated or not: this many take a quarter of a gigabyte."""

_CONTEXT_STEP = 256
"""llama.cpp rounds contexts up to a multiple of this."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes.

    Attributes:
        weights: Its weights.
        context: Keys, values and recurrent states of the context.
        compute: Buffers in which batches are computed.
        on_gpu: Whether these are bytes of GPUs; those in the machine's own memory are left out then.
    """

    weights: int
    context: int
    compute: int
    on_gpu: bool

    @property
    def total(self) -> int:
        """Return all of it."""
        return self.weights + self.context + self.compute


def simulated_memory(path: Path, options: ModelOptions) -> Memory:
    """Return what a model's file would take. llama.cpp allocates nothing, and reads no weights.

    On a machine with GPUs that is what it would put there, else all of it.

    Raises:
        InputError: llama.cpp cannot load the file.
    """
    simulated = dataclasses.replace(options, tokenizer_only=True)
    try:
        uses = core.Session(os.fsencode(path), simulated.for_session()).memory()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}") from error
    on_gpu = any(use["on_gpu"] for use in uses)
    counted = [use for use in uses if use["on_gpu"] == on_gpu]
    parts = {part: sum(use[part] for use in counted) for part in ("weights", "context", "compute")}
    return Memory(**parts, on_gpu=on_gpu)


def fit_side_by_side(headers: Sequence[ModelHeader], options: ModelOptions) -> bool:
    """Return whether the first model and the largest of the others fit into the free memory together.

    Memory that holds the system's copy of a file counts as free.
    """
    on_gpu = core.free_gpu_memory() if options.n_gpu_layers else 0
    free = on_gpu or psutil.virtual_memory().available
    sizes = [header.n_bytes + _upper_bound(header, options) for header in headers]
    return sizes[0] + max(sizes[1:], default=0) <= free


def check_context(header: ModelHeader, options: ModelOptions) -> None:
    """Check that the context fits into the machine's free memory.

    The system would grant the memory, and end the process when it is filled.

    Raises:
        InputError: It does not fit; names the longest context that does.
    """
    free = psutil.virtual_memory().available
    if options.tokenizer_only or _upper_bound(header, options) <= free:
        return

    def n_bytes(n_ctx: int) -> int:
        shorter = dataclasses.replace(options, n_ctx=n_ctx, n_batch=min(options.n_batch, n_ctx), n_gpu_layers=0)
        with loadable(header, with_weights=False) as path:
            return simulated_memory(path, shorter).context

    wanted = max(options.n_ctx, options.n_batch)
    needed = n_bytes(min(wanted, MOST_CONTEXT)) * max(1, wanted // MOST_CONTEXT)
    if needed <= free:
        return
    steps = _largest(
        min(wanted, MOST_CONTEXT) // _CONTEXT_STEP, lambda step: n_bytes(step * _CONTEXT_STEP) <= free
    )
    fits = steps * _CONTEXT_STEP
    advice = f"--ctx {fits}" + f" --batch {fits}" * (fits < options.n_batch) if fits else "no context"
    raise InputError(
        f"{header.path}: a context of {wanted} tokens needs {needed / 1e9:.1f} GB of memory, and "
        f"{free / 1e9:.1f} GB are free: {advice} would fit"
    )


def _upper_bound(header: ModelHeader, options: ModelOptions) -> int:
    """Return more bytes than any context of this length takes, to spare the exact answer where there is plenty."""
    width = header.arch("embedding_length", 0)
    if not isinstance(width, int):
        return 1 << 62
    # Keys and values of one block are together at most eight times as wide as the hidden state.
    of_token = 8 * width * (4 if options.f32_kv else 2)
    return max(options.n_ctx, options.n_batch) * header.n_blocks * of_token


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number up to `most` for which a condition holds, as it does for smaller ones; or 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def advice_for_gpu(header: ModelHeader, options: ModelOptions, free: int) -> str:
    """Return what to do about a model that could not be loaded because `free` bytes of GPU memory are not enough.

    Returns:
        The end of a message; empty where memory is not what was missing, or nothing helps.
    """

    def n_bytes(n_cpu_moe: int) -> int:
        with loadable(header, with_weights=False) as path:
            return simulated_memory(path, dataclasses.replace(options, n_cpu_moe=n_cpu_moe)).total

    try:
        wanted = n_bytes(options.n_cpu_moe)
        # The blocks that may stay on the GPU.
        on_gpu = _largest(header.n_blocks, lambda n: n_bytes(header.n_blocks - n) <= free)
        helps = on_gpu > 0 or n_bytes(header.n_blocks) <= free
    except InputError:
        return ""
    if wanted <= free or not helps:
        return ""
    return (
        f"; it needs about {wanted / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free: "
        f"--n-cpu-moe {header.n_blocks - on_gpu} keeps enough experts in host memory"
    )
