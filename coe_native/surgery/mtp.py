"""Surgery on layers that predict further tokens (MTP), which no forward pass runs and no profile counts."""

from __future__ import annotations

import re

import numpy as np

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import Tensor, encode_entry
from coe_native.model.header import ModelHeader, MoeLayer

_BLOCK = re.compile(r"blk\.(\d+)\.")


def kept_by_router_norm(header: ModelHeader, keep: int) -> dict[int, tuple[int, ...]]:
    """Return the experts to keep in each MTP layer, by block: those whose router rows have the largest norms.

    Each expert group keeps the same number; ties go to the lower index. Reads the routers of these layers.

    Raises:
        InputError: ggml cannot read the type of a router.
    """
    return {layer.block: _best_by_router_norm(header, layer, keep) for layer in header.mtp_layers}


def _best_by_router_norm(header: ModelHeader, layer: MoeLayer, keep: int) -> tuple[int, ...]:
    router = layer.router
    if not core.has_norm(router.type):
        raise InputError(f"{header.path}: {router.name} has a type that ggml cannot read")
    with router.file.open() as file:
        data = read_exactly(file, router.offset, router.n_bytes)
    norms = np.asarray(core.slice_norms(data, router.type, header.n_experts))
    return tuple(header.router_shape.best(norms, keep))


def in_mtp_block(header: ModelHeader, tensor: Tensor) -> bool:
    """Return whether a tensor belongs to an MTP block."""
    match = _BLOCK.match(tensor.name)
    return match is not None and int(match[1]) in header.mtp_blocks


def entries_without_mtp(header: ModelHeader) -> dict[str, bytes]:
    """Return the metadata entries that change where the MTP blocks are dropped, as bytes.

    These are their number, the number of blocks, and lists with one number for each block.
    """
    first, n_left = header.files[0], header.mtp_blocks.start
    prefix = f"{header.architecture}."
    changed = {
        key: first.shortened_entry(key, n_left)
        for key in first.keys
        if key.startswith(prefix)
        and not key.endswith("dimension_sections")  # a list of another kind
        and first.numbers_at(key) == header.n_blocks
    }
    for key, count in (("block_count", n_left), ("nextn_predict_layers", 0)):
        changed[prefix + key] = encode_entry(prefix + key, count)
    return changed
