"""Whether a model fits into memory, and what to lower where it does not."""

from __future__ import annotations

import psutil

from coe_native.errors import InputError
from coe_native.model.header import MoeModel


def check_context(moe: MoeModel, n_ctx: int, n_batch: int, *, bytes_of_value: int = 2) -> None:
    """Raises InputError where keys and values of `n_ctx` tokens need more of the machine's memory than is free,
    and says which context would fit: the system would grant it, and end the process when it is filled."""
    free = psutil.virtual_memory().available

    def n_bytes(length: int) -> int:
        return moe.context_bytes(length, n_batch) * bytes_of_value // 2

    if n_bytes(n_ctx) > free:
        fits, too_long = 0, n_ctx
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if n_bytes(middle) <= free else (fits, middle)
        advice = f"--ctx {fits}" + f" --batch {fits}" * (fits < n_batch) if fits else "no context"
        raise InputError(
            f"{moe.path}: a context of {n_ctx} tokens needs {n_bytes(n_ctx) / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free: {advice} would fit"
        )


def blocks_for_host(moe: MoeModel, n_bytes: int) -> int:
    """How many of the first blocks have experts of at least `n_bytes` bytes together; all, where that is not
    enough."""
    for block in range(moe.n_blocks):
        if n_bytes <= 0:
            return block
        n_bytes -= sum(t.n_bytes for layer in moe.layers if layer.block == block for t in layer.tensors)
    return moe.n_blocks


def advice_for_gpu(moe: MoeModel, free: int, n_ctx: int) -> str:
    """What to do about a model that did not fit into `free` bytes of GPU memory, as the end of a message. A tenth
    is left for what llama.cpp computes in."""
    wanted = moe.n_bytes + moe.context_bytes(n_ctx)
    blocks = blocks_for_host(moe, wanted - free * 9 // 10)
    if blocks == 0:
        return ""
    return (
        f"; it needs about {wanted / 1e9:.1f} GB and the GPU has {free / 1e9:.1f} GB free: --n-cpu-moe {blocks} "
        "keeps enough experts in host memory"
    )
