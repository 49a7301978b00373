"""``coe-native mask``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coe_native.cli.command import Command
from coe_native.cli.keeping import ctx_option, mask_arguments, mask_options
from coe_native.cli.options import force_option, json_option, load_profile, placement_options
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE
from coe_native.errors import InputError
from coe_native.routing.scores import COMBINATIONS
from coe_native.units import counted


@click.command(name="mask", cls=Command)
@click.argument("profiles", type=FILE, nargs=-1, required=True)
@click.option(
    "--combine",
    type=click.Choice(COMBINATIONS),
    help="Several PROFILES, of one domain each: add their normalised scores up, or take the largest.",
)
@mask_options
@click.option("--model", type=FILE, help="The model, or another quantisation of it, whose experts --fit counts.")
@ctx_option
@placement_options
@click.option("-o", "--output", type=FILE, required=True, help="Mask file to write.")
@force_option
@json_option
def command(
    profiles: tuple[Path, ...],
    combine: str | None,
    model: Path | None,
    ctx: int,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Choose the experts to keep by PROFILES, in three passes: scores, structural experts, reasoning."""
    from coe_native.files.atomic import check_target
    from coe_native.masks.build import build_mask
    from coe_native.masks.check import check_cut
    from coe_native.model.header import MoeModel

    inputs = tuple(path for path in (*profiles, options["reasoning"], model) if path is not None)
    check_target(output, force=force, inputs=inputs)
    moe = None if model is None else MoeModel(model)
    if (len(profiles) > 1) != (combine is not None):
        raise InputError("several profiles go with --combine sum or --combine max, and one alone goes without")
    loaded = [load_profile(profile) for profile in profiles]
    mask = build_mask(loaded, combine=combine or "sum", **mask_arguments(options, moe, ctx))
    if moe is not None:
        check_cut(mask, moe)
    mask.save(output, force=force)
    swaps = {stage: sum(swap.stage == stage for swap in mask.swaps) for stage in (2, 3)}
    if as_json:
        print_json(
            {
                "mask": str(output),
                "digest": mask.digest,
                "keep": mask.keep,
                "experts": mask.n_experts,
                "structural_swaps": swaps[2],
                "reasoning_swaps": swaps[3],
                "unplaced": len(mask.unplaced),
            }
        )
    else:
        notes = [counted(swaps[2], "structural swap")]
        if options["reasoning"] is not None:
            notes.append(counted(swaps[3], "reasoning swap"))
        if mask.unplaced:
            notes.append(f"{counted(len(mask.unplaced), 'structural expert')} found no other to replace")
        kept = f"keeps {mask.keep} of {mask.n_experts} experts in {counted(len(mask.kept), 'layer')}"
        say(f"{output}: {kept}; {', '.join(notes)}")
