"""The command ``coe-native mask``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.mask_options import MaskChoice, mask_options, say_fallback
from coe_native.cli.options import force_option, json_option, load_profile, placement_options
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE, MODEL
from coe_native.errors import InputError
from coe_native.routing.scores import COMBINATIONS
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions


class _Weights(click.ParamType["tuple[float, ...]"]):
    """Numbers, written ``1,0.5``."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?(,\d{1,9}(\.\d{1,9})?)*", str(value), re.ASCII):
            self.fail(f"{value!r} is not a list of numbers; write it like 1,0.5", param, ctx)
        return tuple(map(float, str(value).split(",")))


@click.command(name="mask", cls=Command)
@click.argument("profiles", type=FILE, nargs=-1, required=True)
@click.option(
    "--combine",
    type=click.Choice(COMBINATIONS),
    help="For several PROFILES, one for each domain: add their normalised scores, or take the largest.",
)
@click.option(
    "--weights",
    type=_Weights(),
    metavar="W,W,…",
    help="What the scores of each of PROFILES are multiplied with, in their order; 1 if not given.",
)
@mask_options
@click.option(
    "--model", type=MODEL, help="Model to check the mask against, in the quantisation that --fit is for."
)
@placement_options()
@click.option("-o", "--output", type=FILE, required=True, help="Mask file to write.")
@force_option
@json_option
def command(
    profiles: tuple[Path, ...],
    combine: str | None,
    weights: tuple[float, ...],
    model: Path | None,
    output: Path,
    choice: MaskChoice,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Choose the experts to keep from PROFILES, in three passes: score, structural experts, reasoning."""
    from coe_native.files.atomic import check_target
    from coe_native.masks.build import build
    from coe_native.masks.check import check_cut
    from coe_native.masks.expert_mask import Pass
    from coe_native.model.header import ModelHeader

    inputs = (*profiles, *choice.passes.inputs, *(() if model is None else (model,)))
    check_target(output, force=force, inputs=inputs)
    moe = None if model is None else ModelHeader(model)
    if (len(profiles) > 1) != (combine is not None):
        raise InputError("give --combine sum or --combine max with several profiles, and no --combine with one")
    loaded = [load_profile(profile) for profile in profiles]
    mask = build(loaded, replace(choice.load(moe, options, combine), weights=weights or ()))
    say_fallback(choice, mask)
    if moe is not None:
        check_cut(mask, moe)
    mask.save(output, force=force)
    swaps = {stage: sum(swap.stage is stage for swap in mask.swaps) for stage in Pass}
    if as_json:
        print_json(
            {
                "mask": str(output),
                "digest": mask.digest,
                "keep": mask.keep,
                "experts": mask.n_experts,
                "structural_swaps": swaps[Pass.STRUCTURAL],
                "reasoning_swaps": swaps[Pass.REASONING],
                "unplaced": len(mask.unplaced),
            }
        )
    else:
        notes = [f"keeps {mask.keep} of {mask.n_experts} experts in {counted(len(mask.kept), 'layer')}"]
        if swaps[Pass.STRUCTURAL]:
            notes.append(counted(swaps[Pass.STRUCTURAL], "structural swap"))
        if choice.passes.inputs:
            notes.append(counted(swaps[Pass.REASONING], "reasoning swap"))
        if mask.unplaced:
            left_out = counted(len(mask.unplaced), "structural expert")
            notes.append(f"{left_out} could not be added: no replaceable expert was left")
        say(f"{output}: {'; '.join(notes)}")
