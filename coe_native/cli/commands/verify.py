"""The command ``coe-native verify``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.checkpoints import gguf_option, refuse_other_options
from coe_native.cli.command import Command
from coe_native.cli.options import CTX_IN_USE, json_option, model_options
from coe_native.cli.output import print_json
from coe_native.cli.progress import answer_progress, byte_progress
from coe_native.cli.types import COUNT, FILE, MODEL
from coe_native.errors import InputError

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions

_AT_ONCE = 8
"""Answers that are written at once."""


@click.command(name="verify", cls=Command)
@click.argument("written", type=FILE)
@click.option("--parent", type=MODEL, required=True, help="Model that WRITTEN was made from.")
@click.option("--mask", "mask_path", type=FILE, help="Mask file; none for a model that was only requantised.")
@gguf_option
@click.option(
    "--behaviour",
    type=FILE,
    help="Prompts that WRITTEN answers, as for loops: too many answers that loop are a failure.",
)
@click.option(
    "--max-loops",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    help="Largest share of answers that may loop, in per cent.",
)
@click.option("--max-tokens", type=COUNT, default=2048, show_default=True, help="Maximum tokens of an answer.")
@click.option("--raw", is_flag=True, help="Do not use the chat template: the model continues the prompts.")
@model_options(ctx=CTX_IN_USE)
@json_option
def command(
    written: Path,
    parent: Path,
    mask_path: Path | None,
    gguf: Path | None,
    behaviour: Path | None,
    max_loops: float,
    max_tokens: int,
    raw: bool,
    options: ModelOptions,
    as_json: bool,
) -> None:
    """Check WRITTEN, a pruned, zeroed or requantised model, against its parent and mask.

    Bytes are compared, all numbers must be finite, and llama.cpp must be able to run the model. Of requantised
    tensors, the difference from the parent's values must be rounding. With --behaviour, it must also answer
    without looping. Checkpoints, which are directories, are compared with their parent's bytes, config and index,
    and loaded in transformers where it is installed and memory allows.
    """
    from coe_native.evaluation.prompts import read_prompts
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.surgery.hf_verify import verify_checkpoint
    from coe_native.surgery.verify import Check, verify

    context = click.get_current_context()
    for name in ("max_loops", "max_tokens", "raw"):
        is_given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if behaviour is None and is_given:
            raise InputError(f"--{name.replace('_', '-')} is for --behaviour: give the prompts to answer too")
    tasks = None if behaviour is None else read_prompts(behaviour)
    mask = None if mask_path is None else ExpertMask.load(mask_path)
    with byte_progress("verifying") as progress:
        if parent.is_dir():
            refuse_other_options("parent", "mask_path", "gguf", "as_json")
            if mask is None:
                raise InputError(f"{parent}: give the mask that the checkpoint was pruned with: --mask MASK")
            checks = verify_checkpoint(written, parent, mask, gguf=gguf, progress=progress)
        elif gguf is not None:
            raise InputError("--gguf is for checkpoints; leave it out for a GGUF file")
        else:
            checks = verify(written, parent, mask, progress=progress)
    if tasks is not None and not all(check.passed for check in checks):
        checks.append(Check("few answers loop", False, "not tested, because other checks failed"))
    elif tasks is not None:
        from coe_native.recipes.behaviour import check_loops

        with answer_progress("answering", len(tasks)) as answered:
            checks.append(
                check_loops(
                    written,
                    tasks,
                    replace(options, n_sequences=_AT_ONCE),
                    max_share=max_loops / 100,
                    max_tokens=max_tokens,
                    raw=raw,
                    progress=answered,
                )
            )
    passed = all(check.passed for check in checks)
    if as_json:
        print_json({"model": str(written), "passed": passed, "checks": [asdict(check) for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{'ok    ' if check.passed else 'FAILED'}  {check.name:<{width}}  {check.detail}")
    if not passed:
        raise click.exceptions.Exit(1)
