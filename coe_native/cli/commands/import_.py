"""The command ``coe-native import``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option
from coe_native.cli.output import print_json, say
from coe_native.cli.types import COUNT, FILE, MODEL


@click.command(name="import", cls=Command)
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Profile or mask file to write.")
@click.option("--model", type=MODEL, help="Model that FILE belongs to: checked, and recorded in the output.")
@click.option("--experts", type=COUNT, help="Experts of a layer, if neither FILE nor --model tells.")
@force_option
@json_option
def command(file: Path, output: Path, model: Path | None, experts: int | None, force: bool, as_json: bool) -> None:
    """Import counts or a mask from FILE: a .pt, .npz or .safetensors, or a GGUF of llama-imatrix.

    Tensors are counts [layer, expert, rank] or [layer, expert], a list of one tensor of expert indices for
    each layer, or a boolean tensor [layer, expert]. Nothing in a file is executed, and PyTorch is not needed.
    Imported profiles have no router weights: score them with --method rank-weighted or frequency. Those without
    ranks, such as llama-imatrix's, need frequency.
    """
    from coe_native.files.atomic import check_target
    from coe_native.importers.import_file import import_file
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.header import ModelHeader

    check_target(output, force=force, inputs=(file,) if model is None else (file, model))
    moe = None if model is None else ModelHeader(model)
    found = import_file(file, model=moe, n_experts=experts)
    found.save(output, force=force)
    if isinstance(found, ExpertMask):
        facts = {"mask": str(output), "layers": len(found.kept), "experts": found.n_experts, "keep": found.keep}
        text = f"{output}: a mask that keeps {found.keep} of {found.n_experts} experts in {len(found.kept)} layers"
    else:
        ranks = found.top_k if found.has_ranks else None
        facts = {"profile": str(output), "layers": len(found.layers), "experts": found.n_experts}
        facts |= {"tokens": found.n_tokens, "ranks": ranks}
        known = "by rank" if found.has_ranks else "without ranks"
        text = f"{output}: a profile of {found.n_tokens} tokens in {len(found.layers)} MoE layers, counted {known}"
    if as_json:
        print_json({**facts, "model": None if moe is None else moe.name})
        return
    say(text)
    if moe is None:
        say("No model is recorded; pass --model to check the file, and to have it refused for other models.")
