"""The command ``coe-native export``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option
from coe_native.cli.output import print_json, say
from coe_native.cli.types import FILE


@click.command(name="export", cls=Command)
@click.argument("mask_path", metavar="MASK", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="File to write.")
@force_option
@json_option
def command(mask_path: Path, output: Path, force: bool, as_json: bool) -> None:
    """Write MASK as the list of experts that vLLM-Ascend keeps as it loads a model.

    It drops the others of Qwen3-MoE models, so that no pruned copy is needed. For other engines and models, prune
    the checkpoint: coe-native prune DIRECTORY.
    """
    from coe_native.files.atomic import check_target
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.masks.export import export_mask

    mask = ExpertMask.load(mask_path)
    check_target(output, force=force, inputs=(mask_path,))
    settings = export_mask(mask, output, force=force)
    if as_json:
        print_json({"output": str(output), "keep": mask.keep, "additional_config": settings})
        return
    say(f"{output}: {mask.keep} of {mask.n_experts} experts in each of {len(mask.kept)} layers")
    say(f"vllm serve MODEL --additional-config {shlex.quote(json.dumps(settings))}")
