"""The command ``coe-native specialise``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.mask_options import MaskChoice, mask_options
from coe_native.cli.options import (
    CTX_IN_USE,
    Reading,
    corpus_option,
    for_use,
    force_option,
    json_option,
    model_options,
    reading_options,
)
from coe_native.cli.output import print_table, say, say_skipped
from coe_native.cli.progress import step_progress
from coe_native.cli.types import COUNT, FILE, MODEL
from coe_native.units import gigabytes

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions


@click.command(name="specialise", cls=Command)
@click.argument("model", type=MODEL)
@corpus_option
@click.option("-o", "--output", type=FILE, required=True, help="GGUF file to write.")
@click.option("--text", "texts", multiple=True, type=FILE, help="Held-out text; the corpus itself if not given.")
@mask_options
@click.option(
    "--fit-ctx",
    type=COUNT,
    default=CTX_IN_USE,
    show_default=True,
    help="Tokens of the context that must fit too, with --fit.",
)
@reading_options
@model_options()
@force_option
@json_option
def command(
    model: Path,
    corpora: tuple[Path, ...],
    output: Path,
    texts: tuple[Path, ...],
    fit_ctx: int,
    reading: Reading,
    choice: MaskChoice,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Profile, mask, prune, verify and evaluate MODEL for one kind of text, and write a report."""
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader
    from coe_native.profiling.run import DOCUMENTS_AT_ONCE
    from coe_native.recipes.specialise import check_outputs, specialise
    from coe_native.surgery.notice import safety_notice

    inputs = (*corpora, *texts, *choice.passes.inputs)
    moe = ModelHeader(model)
    check_outputs(output, force=force, inputs=(*moe.paths, *inputs))
    chosen = choice.load(moe, for_use(options, fit_ctx))
    moe.check_cut(chosen.keep)
    read = reading.corpora(corpora)
    say_skipped(read)
    held_out = [reading.corpus(path) for path in texts] or read
    with (
        LoadedModel(model, options, n_sequences=DOCUMENTS_AT_ONCE) as parent,
        step_progress() as watchers,
    ):
        made = specialise(
            parent,
            read,
            output,
            texts=held_out,
            mask_options=chosen,
            force=force,
            inputs=inputs,
            watchers=watchers,
        )
        parent_bytes = parent.moe.n_bytes
    if as_json:
        click.echo(json.dumps(json.loads(output.with_name(f"{output.stem}.report.json").read_bytes()), indent=1))
        return
    print_table(
        f"keep {made.mask.keep} of {made.mask.n_experts}: {gigabytes(parent_bytes)} -> "
        f"{gigabytes(output.stat().st_size)}; perplexity on {'held-out text' if texts else 'the profiled text'}",
        ["text", "parent", *(f"live, {name}" for name in (made.method, *made.other_methods)), "pruned"],
        [
            [
                parent.text,
                f"{parent.perplexity:.3f}",
                *(f"{r.perplexity:.3f} {r.loss(parent):+.1%}" for r in others),
            ]
            for parent, *others in zip(
                made.parent, made.live_masked, *made.other_methods.values(), made.pruned, strict=True
            )
        ],
    )
    if not texts:
        say("Text that was profiled makes a specialist look better than it is; pass other text with --text.")
    for path in sorted(set(texts) & set(corpora)):
        say(f"{path} was profiled too, so it is not held out.")
    say(f"{output} is verified; its profile, mask and report are next to it.")
    say(safety_notice(made.method))
