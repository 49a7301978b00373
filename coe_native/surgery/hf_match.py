"""Whether a mask, which was made with a GGUF, is of a checkpoint's model: the two have equal routers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.files.regular import open_regular
from coe_native.masks.check import check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.model.hf_checkpoint import CONFIG, HfCheckpoint
from coe_native.model.hf_experts import FLOATS, HfMoeLayer
from coe_native.model.router_shape import RouterShape

_RELATIVE, _ABSOLUTE = 2.0**-7, 2.0**-24
"""Rounding to BF16 changes a value by at most 2^-8 of it, cutting its bits off by 2^-7; F16 loses up to 2^-25 near
zero, or 2^-24."""

_QUANTISED = 0.3
"""Quantising a router moves it by less than this part of its norm; another router differs by 1.4."""


def check_match(
    parent: HfCheckpoint, layers: Sequence[HfMoeLayer], mask: ExpertMask, gguf: ModelHeader | None
) -> bool:
    """Check that a mask is of a checkpoint's model, and return whether the routers could be compared.

    Args:
        parent: The checkpoint.
        layers: Its layers with experts.
        mask: The mask.
        gguf: The model that the mask was made with. With it, values may differ by rounding; without it, they
            are known by their digest only, and must be equal.

    Raises:
        InputError: It is not; says what differs.
    """
    where = f"{mask.place}: for {parent.path}"
    blocks = [layer.index for layer in layers if layer.index < parent.n_layers]
    if sorted(mask.kept) != blocks:
        raise InputError(f"{where}: the list of layers with experts differs ({len(mask.kept)}, not {len(blocks)})")
    shape = router_shape(parent)
    if parent.top_ks and mask.keep < shape.top_k:
        raise InputError(f"{where}: it keeps {mask.keep} experts, but a token needs {shape.top_k}")
    try:
        shape.check_keep(mask.keep)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    for block, kept in mask.kept.items():
        if len({sum(expert in group for expert in kept) for group in shape.groups()}) != 1:
            raise InputError(
                f"{where}: layer {block} keeps different numbers of experts in the {shape.n_groups} groups"
            )
    if gguf is not None:
        check_mask(mask, gguf)
    if any(parent.tensors[layer.router].stored.dtype not in FLOATS for layer in layers):
        return False
    if gguf is not None:
        _compare_routers(parent, layers, gguf)
        return True
    if not mask.is_tied:
        return False
    if not parent.top_ks:
        raise InputError(
            f"{parent.path / CONFIG}: does not say how many experts a token uses, without which the mask's model "
            "cannot be told from others; pass --gguf GGUF"
        )
    if mask.fingerprint not in _fingerprints(parent, layers, mask.architecture):
        raise InputError(
            f"{where}: its routers have other values: the mask is of another model; if one of the two was "
            "rounded to another type, pass --gguf GGUF to compare them up to rounding"
        )
    return True


def router_shape(parent: HfCheckpoint) -> RouterShape:
    """Return how a checkpoint's routers choose, by its config."""
    top_k = min(parent.top_ks, default=1)
    groups = parent.groups
    if groups is None or parent.n_experts % groups[0]:
        return RouterShape(parent.n_experts, top_k)
    return RouterShape(parent.n_experts, top_k, *groups)


def router_values(parent: HfCheckpoint, layer: HfMoeLayer) -> NDArray[np.float32]:
    """Return a router of floats, [n_experts, n_embd]."""
    tensor = parent.tensors[layer.router]
    with open_regular(tensor.file.path) as file:
        data = read_exactly(file, tensor.stored.begin, tensor.stored.n_bytes)
    return _floats(data, tensor.stored.dtype).reshape(tensor.shape)


def _floats(data: bytes, dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


def _compare_routers(parent: HfCheckpoint, layers: Sequence[HfMoeLayer], gguf: ModelHeader) -> None:
    """Check that the routers of a checkpoint and of a GGUF differ by rounding only.

    Raises:
        InputError: They differ by more; names the router.
    """
    routers = {layer.block: layer.router for layer in gguf.routed_layers}
    for layer in (layer for layer in layers if layer.index < parent.n_layers):
        ours, router = router_values(parent, layer), routers[layer.index]
        with router.file.open() as file:
            data = read_exactly(file, router.offset, router.n_bytes)
        theirs = dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType(router.type)).ravel()
        if theirs.size != ours.size or not _alike(ours.ravel(), theirs, is_float=router.type_name in FLOATS):
            raise InputError(
                f"{parent.path}: {layer.router} has other values than {router.name} of {gguf.path}, by more than "
                "rounding: they are different models"
            )


def _alike(ours: NDArray[np.float32], theirs: NDArray[np.float32], *, is_float: bool) -> bool:
    if is_float:
        return np.allclose(ours, theirs, _RELATIVE, _ABSOLUTE)
    return bool(np.linalg.norm(ours - theirs) <= _QUANTISED * np.linalg.norm(ours))


def _fingerprints(parent: HfCheckpoint, layers: Sequence[HfMoeLayer], architecture: str) -> Iterator[str]:
    """Yield the fingerprints that the GGUF of this model may have: see docs/formats.md.

    The config has several numbers that may be the number of blocks or of chosen experts.
    """
    routers = [(layer.index, router_values(parent, layer)) for layer in layers]
    main = [(index, values) for index, values in routers if index < parent.n_layers]
    # llama.cpp's converter may leave out the layers that predict further tokens.
    for chosen in [routers, main] if len(main) < len(routers) else [routers]:
        n_blocks = {chosen[-1][0] + 1, routers[-1][0] + 1}
        n_blocks |= {parent.n_layers + extra for extra in (0, *parent.mtp_layer_counts)}
        for count in n_blocks:
            for top_k in parent.top_ks:
                digest = hashlib.sha256()
                for text in (architecture, count, parent.n_experts, top_k):
                    digest.update(f"{text}\0".encode())
                for index, values in chosen:
                    n_experts, width = values.shape
                    for text in (f"blk.{index}.ffn_gate_inp.weight", f"({width}, {n_experts})", 0):
                        digest.update(f"{text}\0".encode())
                    digest.update(values.astype("<f4", copy=False).tobytes())
                yield digest.hexdigest()
