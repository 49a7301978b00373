"""``coe-native prune``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.shared import (
    FILE,
    Command,
    byte_progress,
    force_option,
    json_option,
    mask_option,
    print_json,
    say,
    size_of,
    split_option,
)


@click.command(name="prune", cls=Command)
@click.argument("model", type=FILE)
@mask_option
@click.option("-o", "--output", type=FILE, required=True, help="GGUF file to write.")
@click.option("--drop-mtp", is_flag=True, help="Leave out the layers that predict further tokens (MTP).")
@split_option
@force_option
@json_option
def command(
    model: Path,
    mask_path: Path,
    output: Path,
    drop_mtp: bool,
    split_max_bytes: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL with the kept experts only: smaller, and otherwise the same byte for byte."""
    from coe_native.masking import ExpertMask
    from coe_native.moe_model import MoeModel
    from coe_native.surgery import prune
    from coe_native.surgery_plan import SAFETY_NOTICE

    mask = ExpertMask.load(mask_path)
    with byte_progress("pruning") as progress:
        written = MoeModel(
            prune(
                model,
                mask,
                output,
                drop_mtp=drop_mtp,
                split_max_bytes=split_max_bytes,
                force=force,
                inputs=(mask_path,),
                progress=progress,
            )
        )
    if as_json:
        facts = {"output": str(written.path), "files": list(map(str, written.paths)), "bytes": written.n_bytes}
        print_json({**facts, "keep": mask.keep, "notice": SAFETY_NOTICE})
    else:
        say(f"{size_of(written)}, {mask.keep} of {mask.n_experts} experts in each layer")
        say(SAFETY_NOTICE)
