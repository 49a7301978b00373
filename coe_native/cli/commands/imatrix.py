"""The command ``coe-native imatrix``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.options import (
    Reading,
    corpus_option,
    force_option,
    json_option,
    min_tokens_option,
    model_options,
    reading_options,
)
from coe_native.cli.output import print_json, say, say_few_tokens, say_skipped
from coe_native.cli.progress import token_progress
from coe_native.cli.types import FILE, MODEL
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions


@click.command(name="imatrix", cls=Command)
@click.argument("model", type=MODEL)
@corpus_option
@click.option("-o", "--output", type=FILE, required=True, help="Importance matrix to write.")
@click.option("--mask", "mask_path", type=FILE, help="Mask file: for the specialist, with its experts only.")
@min_tokens_option
@reading_options
@model_options(batch_by_device=True)
@force_option
@json_option
def command(
    model: Path,
    corpora: tuple[Path, ...],
    output: Path,
    mask_path: Path | None,
    min_tokens: int,
    reading: Reading,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Run text through MODEL and write an importance matrix, in llama.cpp's GGUF format.

    It makes files of fewer bits lose less on this kind of text: pass it to quantize, or to llama-quantize.
    """
    from coe_native.files.atomic import check_target
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.header import ModelHeader
    from coe_native.profiling.imatrix import InputWatcher
    from coe_native.profiling.run import DOCUMENTS_AT_ONCE, profile_corpora
    from coe_native.routing.stats import Stats

    moe = ModelHeader(model)
    moe.check_countable()
    masks = () if mask_path is None else (mask_path,)
    check_target(output, force=force, inputs=(*moe.paths, *corpora, *masks))
    mask = None if mask_path is None else ExpertMask.load(mask_path)
    read = reading.corpora(corpora)
    say_skipped(read)
    inputs = InputWatcher(min_tokens=min_tokens)
    with (
        LoadedModel(model, options, n_sequences=DOCUMENTS_AT_ONCE) as loaded,
        token_progress("summing inputs") as progress,
    ):
        if mask is not None:
            loaded.apply(mask)
        profile = profile_corpora(loaded, read, stats=Stats.ROUTING.value, inputs=inputs, progress=progress)
    inputs.imatrix.save(output, force=force)
    say_few_tokens(inputs, min_tokens)
    if as_json:
        facts = {"tokens": profile.n_tokens, "tensors": len(inputs.imatrix.entries), "few_tokens": inputs.n_few}
        print_json({"imatrix": str(output), "mask": None if mask is None else mask.digest, **facts})
    else:
        say(f"{output}: {len(inputs.imatrix.entries)} tensors, {counted(profile.n_tokens, 'token')}")
