"""The command ``coe-native eval``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.options import Reading, json_option, model_options, reading_options
from coe_native.cli.output import print_json, print_table, say_skipped
from coe_native.cli.types import FILE, MODEL

if TYPE_CHECKING:
    from coe_native.llama.options import ModelOptions


@click.command(name="eval", cls=Command)
@click.argument("model", type=MODEL)
@click.option(
    "--text", "texts", multiple=True, required=True, type=FILE, help="Held-out text: files, directories or -."
)
@click.option(
    "--mask", "mask_path", type=FILE, help="Mask to apply live to MODEL: judges a specialist without writing it."
)
@click.option("--reference", type=MODEL, help="Model to compare with: adds KL divergence and top-1 agreement.")
@reading_options
@model_options()
@json_option
def command(
    model: Path,
    texts: tuple[Path, ...],
    mask_path: Path | None,
    reference: Path | None,
    reading: Reading,
    options: ModelOptions,
    as_json: bool,
) -> None:
    """Measure MODEL's perplexity on held-out text, with llama-perplexity's protocol."""
    import contextlib

    from coe_native.evaluation.perplexity import evaluate, evaluate_masks
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.masks.expert_mask import ExpertMask

    read = [reading.corpus(path) for path in texts]
    say_skipped(read)
    mask = None if mask_path is None else ExpertMask.load(mask_path)
    with contextlib.ExitStack() as stack:
        loaded = stack.enter_context(LoadedModel(model, options))
        if mask is not None and reference is not None and _same_file(reference, model):
            results = [evaluate_masks(loaded, text, [mask])[1][0] for text in read]  # no second load is needed
        else:
            if mask is not None:
                loaded.apply(mask)
            other = None if reference is None else stack.enter_context(LoadedModel(reference, options))
            results = [evaluate(loaded, text, reference=other) for text in read]
    if as_json:
        mask_name = None if mask_path is None else str(mask_path)
        print_json({"model": str(model), "mask": mask_name, "texts": [asdict(result) for result in results]})
        return
    columns = ["text", "tokens scored", "perplexity", "+/-"]
    rows = [[r.text, str(r.n_scored), f"{r.perplexity:.4f}", f"{r.error:.4f}"] for r in results]
    if reference is not None:
        columns += ["KL divergence", "+/-", "same top token"]
        for row, result in zip(rows, results, strict=True):
            row += [f"{result.kl_divergence:.6f}", f"{result.kl_error:.6f}", f"{result.top1_agreement:.2%}"]
    print_table("", columns, rows)


def _same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)
