"""``coe-native prune``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.shared import (
    FILE,
    byte_progress,
    force_option,
    gigabytes,
    json_option,
    mask_option,
    print_json,
    say,
)


@click.command(name="prune")
@click.argument("model", type=FILE)
@mask_option
@click.option("-o", "--output", type=FILE, required=True, help="GGUF file to write.")
@force_option
@json_option
def command(model: Path, mask_path: Path, output: Path, force: bool, as_json: bool) -> None:
    """Write MODEL with the kept experts only: smaller, and otherwise the same byte for byte."""
    from coe_native.masking import ExpertMask
    from coe_native.surgery import SAFETY_NOTICE, prune

    mask = ExpertMask.load(mask_path)
    with byte_progress("pruning") as progress:
        prune(model, mask, output, force=force, inputs=(mask_path,), progress=progress)
    size = output.stat().st_size
    if as_json:
        print_json({"output": str(output), "bytes": size, "keep": mask.keep, "notice": SAFETY_NOTICE})
    else:
        say(f"{output}: {gigabytes(size)}, {mask.keep} of {mask.n_experts} experts in each layer")
        say(SAFETY_NOTICE)
