"""What ``prune`` and ``verify`` do with Hugging Face checkpoints, which are directories."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.output import print_json, say
from coe_native.cli.progress import byte_progress
from coe_native.cli.types import MODEL
from coe_native.errors import InputError
from coe_native.units import gigabytes

gguf_option = click.option(
    "--gguf",
    type=MODEL,
    help="GGUF that the mask was made with. The checkpoint's routers may then differ from it by rounding.",
)


def refuse_other_options(*taken: str) -> None:
    """Check that the running command got no options but these, by their parameters' names.

    Raises:
        InputError: It got another one, which is for GGUF files.
    """
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(str(param.name)) is click.core.ParameterSource.COMMANDLINE
        if given and param.name not in taken and isinstance(param, click.Option):
            raise InputError(f"{param.opts[0]} is for GGUF files; leave it out for a checkpoint")


def prune_directory(
    model: Path, mask_path: Path | None, output: Path, *, gguf: Path | None, force: bool, as_json: bool
) -> None:
    """Prune a checkpoint, and say what was done."""
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.surgery.hf_prune import prune_checkpoint
    from coe_native.surgery.notice import safety_notice

    if mask_path is None:
        raise InputError(
            f"{model}: a checkpoint is pruned with a mask that was made with the model's GGUF: --mask MASK"
        )
    mask = ExpertMask.load(mask_path)
    inputs = (mask_path,) if gguf is None else (mask_path, gguf)
    with byte_progress("pruning") as progress:
        pruned = prune_checkpoint(model, mask, output, gguf=gguf, force=force, inputs=inputs, progress=progress)
    notice = safety_notice(mask.provenance.get("method"))
    if as_json:
        facts = {"output": str(pruned.path), "bytes": pruned.n_bytes, "keep": mask.keep}
        print_json({**facts, "checked": pruned.checked, "left_out": list(pruned.left_out), "notice": notice})
        return
    say(f"{pruned.path}: {gigabytes(pruned.n_bytes)}, {mask.keep} of {mask.n_experts} experts in each layer")
    if not pruned.checked:
        say("the routers were not compared with the mask's model: they are quantised, or the mask names no model")
    if pruned.left_out:
        say(f"not copied, because they may hold the parent's weights: {', '.join(pruned.left_out)}")
    say(notice)
