"""Whether a mask is for a model, and whether the model can be cut to it."""

from __future__ import annotations

from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader


def check_mask(mask: ExpertMask, model: ModelHeader) -> None:
    """Check that a mask was made for a model.

    Raises:
        InputError: It was not; says what differs.
    """
    _check(mask, model, cut=False)


def check_cut(mask: ExpertMask, model: ModelHeader) -> None:
    """Check that a mask was made for a model, and that the model can be cut to what it keeps.

    Raises:
        InputError: It was not, or llama.cpp could not run the result, or would compute something else with it
            than with the parent whose other experts are masked.
    """
    _check(mask, model, cut=True)


def _check(mask: ExpertMask, model: ModelHeader, *, cut: bool) -> None:
    if mask.is_tied:
        _ = model.fingerprint  # read before it is compared
    try:
        if cut:
            mask.native.check_cut(model.native)
        else:
            mask.native.check_model(model.native)
    except ValueError as error:
        raise InputError(f"{mask.place}: for {model.path}: {error}") from error
