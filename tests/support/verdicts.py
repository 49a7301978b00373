"""Masks for any model, and whether Python accepts them."""

from __future__ import annotations

import itertools
from pathlib import Path

import coe_native as coe
from coe_native.masks.check import check_cut


def first_experts(model: coe.MoeModel, keep: int) -> coe.ExpertMask:
    """Return a mask that keeps the first experts of each group."""
    shape = model.router_shape
    kept = tuple(sorted(itertools.islice(itertools.chain(*zip(*shape.groups(), strict=True)), keep)))
    return coe.ExpertMask(
        model.architecture, model.fingerprint, model.n_experts, keep, dict.fromkeys(model.blocks, kept)
    )


def python_refuses(path: Path, model: coe.MoeModel) -> bool:
    """Return whether Python refuses a mask file for a model."""
    try:
        check_cut(coe.ExpertMask.load(path), model)
    except coe.InputError:
        return True
    return False
