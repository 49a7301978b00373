"""Whether a mask is for a model."""

from __future__ import annotations

import numpy as np

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import MoeModel
from coe_native.routing.profile import UNKNOWN


def check_mask(mask: ExpertMask, model: MoeModel) -> None:
    """Raises InputError, saying what differs, unless `mask` was made for `model`."""
    for what, theirs, ours in (
        ("architecture", mask.architecture, model.architecture if mask.is_tied else UNKNOWN),
        ("number of experts", mask.n_experts, model.n_experts),
        ("list of MoE layers", sorted(mask.kept), model.blocks),
    ):
        if theirs != ours:
            raise InputError(
                f"{mask.place}: was made for another model than {model.path}: its {what} differs "
                f"({theirs}, not {ours}); profile this model and make its own mask"
            )
    if mask.is_tied and mask.fingerprint != model.fingerprint:
        raise InputError(
            f"{mask.place}: was made for another model than {model.path}: its routers have other weights; "
            "profile this model and make its own mask"
        )
    if mask.keep < model.top_k:
        raise InputError(f"{mask.place}: keeps {mask.keep} experts, but a token needs {model.top_k}")


def check_cut(mask: ExpertMask, model: MoeModel) -> None:
    """Raises InputError, with the reason, unless `model` can be cut to what `mask` keeps: the mask must be the
    model's own, and llama.cpp must compute with fewer experts what the parent does with the others masked."""
    check_mask(mask, model)
    model.check_cut(mask.keep)
    uneven = [block for block, kept in mask.kept.items() if not model.router_shape.is_even(kept)]
    if uneven:
        raise InputError(
            f"{mask.place}: keeps unlike numbers of the {model.router_shape.n_groups} groups of experts in blocks "
            f"{uneven}, which {model.path} cannot be cut to; make a mask from a profile of this model"
        )


def keep_by_router_norm(model: MoeModel, keep: int) -> dict[int, tuple[int, ...]]:
    """The experts to keep in the layers that no profile sees (MTP): those whose rows of the router have the
    largest norm, as many in each group, ties to the lower index. By block index; the router's bytes are read."""
    kept = {}
    for layer in model.mtp_layers:
        with layer.router.file.open() as file:
            data = read_exactly(file, layer.router.offset, layer.router.n_bytes)
        if not core.has_norm(layer.router.type):
            raise InputError(f"{model.path}: {layer.router.name} is of a type that ggml cannot read")
        norms = np.asarray(core.slice_norms(data, layer.router.type, model.n_experts))
        kept[layer.block] = tuple(model.router_shape.best(norms, keep))
    return kept
