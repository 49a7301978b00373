"""The command ``coe-native zero``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option, mask_option
from coe_native.cli.output import print_json, say
from coe_native.cli.progress import byte_progress
from coe_native.cli.types import FILE
from coe_native.errors import InputError
from coe_native.units import gigabytes

_STUDY = "The router can still choose a zeroed expert, so this model is for study; use `prune` for one to run."


@click.command(name="zero", cls=Command)
@click.argument("model", type=FILE)
@mask_option
@click.option("-o", "--output", type=FILE, help="GGUF file to write.")
@click.option("--in-place", is_flag=True, help="Change MODEL itself. This cannot be undone.")
@click.option("--yes", is_flag=True, help="Do not ask before changing MODEL itself.")
@force_option
@json_option
def command(
    model: Path, mask_path: Path, output: Path | None, in_place: bool, yes: bool, force: bool, as_json: bool
) -> None:
    """Write MODEL with the dropped experts' weights zeroed, as a copy or in place."""
    from coe_native.masks.check import check_mask
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.header import ModelHeader
    from coe_native.surgery.in_place import zero_in_place
    from coe_native.surgery.write import zero

    if in_place == (output is not None):
        raise InputError("zero needs either -o FILE or --in-place")
    mask = ExpertMask.load(mask_path)
    if output is not None:
        with byte_progress("zeroing") as progress:
            zero(model, mask, output, force=force, inputs=(mask_path,), progress=progress)
        result = {"output": str(output), "bytes": output.stat().st_size}
        message = f"{output}: {gigabytes(output.stat().st_size)}"
    else:
        check_mask(mask, ModelHeader(model, surgery_goes_on=True))
        _confirm(model, yes)
        with byte_progress("zeroing") as progress:
            zeroed = zero_in_place(model, mask, progress=progress)
        result = {"output": str(model), "zeroed_bytes": zeroed.n_bytes, "freed_bytes": zeroed.freed}
        message = f"{model}: {gigabytes(zeroed.n_bytes)} zeroed in place, {gigabytes(zeroed.freed)} of disk freed"
    if as_json:
        print_json({**result, "keep": mask.keep, "notice": _STUDY})
    else:
        say(message)
        say(_STUDY)


def _confirm(model: Path, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{model}: --in-place destroys experts for good; pass --yes to confirm")
    click.confirm(f"Destroy experts in {model} itself?", abort=True, err=True)
