"""The command ``coe-native sweep``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.mask_options import PassChoice, pass_options, slower_on_cuda
from coe_native.cli.options import (
    CTX_IN_USE,
    Reading,
    for_use,
    force_option,
    json_option,
    load_profile,
    model_options,
    needs_extra,
    reading_options,
)
from coe_native.cli.output import print_json, print_table, say, say_skipped
from coe_native.cli.progress import token_progress
from coe_native.cli.types import COUNT, FILE, MODEL, Size
from coe_native.errors import InputError
from coe_native.routing.scores import METHODS, check_method
from coe_native.units import gibibytes, gigabytes

if TYPE_CHECKING:
    from coe_native.evaluation.sweep import Sweep, SweepPoint
    from coe_native.llama.options import ModelOptions


class _Text(click.ParamType[tuple[str, Path]]):
    """A text, written ``[NAME=]PATH``, or a path alone, which is also its name."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        name, equals, path = str(value).partition("=")
        if not equals or Path(value).exists():
            return str(value), Path(value)
        if not name or not path:
            self.fail(f"{value!r} is not a text; write it like own=held-out.txt", param, ctx)
        return name, Path(path)


class _Keeps(click.ParamType[tuple[int, ...]]):
    """Numbers of experts, written ``16,32,48``."""

    name = "keeps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", str(value), re.ASCII):
            self.fail(f"{value!r} is not a list of numbers; write it like 16,32,48", param, ctx)
        return tuple(map(int, str(value).split(",")))


class _Share(click.ParamType[float]):
    """A share, written ``1.5%`` or ``0.015``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,9})?)(%?)", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a share; write it like 5%", param, ctx)
        if not match[2] and float(match[1]) > 1:
            self.fail(f"{value!r} means {value} times as much; write {value}% for per cent", param, ctx)
        return float(match[1]) / (100 if match[2] else 1)


@click.command(name="sweep", cls=Command)
@click.argument("model", type=MODEL)
@click.option("--profile", type=FILE, required=True, help="Profile to build the masks from.")
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    type=_Text(),
    metavar="[NAME=]PATH",
    help="Held-out text (repeatable). The first is of the specialist's domain.",
)
@click.option(
    "--keep",
    "keeps",
    type=_Keeps(),
    metavar="N,N,…",
    help="Numbers of experts to keep; sixteenths of all if not given.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    help="How experts are scored (repeatable); if not given, as for `mask`.",
)
@click.option(
    "--max-loss",
    type=_Share(),
    default="5%",
    show_default=True,
    help="Show the smallest keep whose perplexity on the first text rises by at most this.",
)
@click.option(
    "--fit",
    "fit_bytes",
    type=Size(),
    metavar="SIZE",
    help="Also show the memory that each keep needs, and which fit into this much (12GiB).",
)
@click.option(
    "--fit-ctx", type=COUNT, default=CTX_IN_USE, show_default=True, help="Tokens of the context that must fit too."
)
@pass_options
@click.option("-o", "--output", type=FILE, help="JSON file to write, for `report --sweep`.")
@click.option("--plot", type=FILE, help="HTML page with a plot, to write.")
@click.option("--csv", "as_csv", is_flag=True, help="Print everything as CSV.")
@reading_options
@model_options()
@force_option
@json_option
def command(
    model: Path,
    profile: Path,
    texts: tuple[tuple[str, Path], ...],
    keeps: tuple[int, ...] | None,
    methods: tuple[str, ...],
    max_loss: float,
    fit_bytes: int | None,
    fit_ctx: int,
    output: Path | None,
    plot: Path | None,
    as_csv: bool,
    reading: Reading,
    passes: PassChoice,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Evaluate MODEL under masks of many sizes, to show how small a specialist can be.

    MODEL is loaded once and masked live; no model is written. Each mask's perplexity is measured, and its KL
    divergence and top-1 agreement with the unmasked model.
    """
    from coe_native.evaluation.sweep import default_keeps, sweep
    from coe_native.files.atomic import check_target
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader
    from coe_native.surgery.fit import memory_of

    _check(texts, output, plot, as_csv=as_csv, as_json=as_json)
    moe = ModelHeader(model)
    inputs = (*moe.paths, profile, *(path for _, path in texts))
    for path in (output, plot):
        if path is not None:
            check_target(path, force=force, inputs=inputs)
    if plot is not None:
        with needs_extra("report"):
            from coe_native.report.page import sweep_page
    methods = passes.methods(methods)
    mask_passes = passes.load()
    routing = load_profile(profile)
    for method in methods:
        check_method(routing, method)
    read = {name: reading.corpus(path) for name, path in texts}
    say_skipped(list(read.values()))
    tried = default_keeps(moe) if keeps is None else sorted(set(keeps))
    needed = {}
    if fit_bytes is not None:
        use = for_use(options, fit_ctx)
        needed = {keep: memory_of(moe, keep, use).total for keep in (*tried, moe.n_experts)}
    with LoadedModel(model, options) as parent, token_progress("judging") as progress:
        found = sweep(
            parent,
            routing,
            read,
            keeps=tried,
            methods=methods,
            progress=progress,
            passes=mask_passes,
        )
    if output is not None:
        found.save(output, force=force)
    if plot is not None:
        sweep_page(plot, found)
    best = {method: found.smallest(method, max_loss) for method in found.methods}
    if as_json:
        smallest = {method: None if point is None else point.keep for method, point in best.items()}
        print_json({**found.as_json(), "max_loss": max_loss, "smallest": smallest, "memory": needed})
        return
    if as_csv:
        click.echo(found.as_csv(), nl=False)
        return
    _print(found, needed)
    for method, point in best.items():
        for line in _verdict(found, method, point, max_loss):
            say(line)
    if fit_bytes is not None:
        say(_fitting(found, best, needed, fit_bytes, fit_ctx))


def _check(
    texts: Sequence[tuple[str, Path]], output: Path | None, plot: Path | None, *, as_csv: bool, as_json: bool
) -> None:
    """Check that the options go together."""
    if as_csv and as_json:
        raise InputError("--csv and --json both print to standard output; give only one of them")
    if output is not None and plot is not None and output.resolve() == plot.resolve():
        raise InputError(f"{output}: cannot be the JSON file and the page at once; give --plot another name")
    if len({name for name, _ in texts}) < len(texts):
        raise InputError("--text: two texts have the same name; give each its own: own=… other=…")


def _fitting(
    found: Sweep, best: Mapping[str, SweepPoint | None], needed: Mapping[int, int], fit_bytes: int, fit_ctx: int
) -> str:
    """Return which of the tried sizes fit into memory, and whether they are good enough, as text."""
    size = f"{gibibytes(fit_bytes)} with a context of {fit_ctx} tokens"
    fits = [point for point in found.points if needed[point.keep] <= fit_bytes]
    if not fits:
        return f"none of the tried sizes fits into {size}: the smallest needs {gibibytes(min(needed.values()))}"
    if all(point is not None and point in fits for point in best.values()):
        return f"{'it fits' if len(best) == 1 else 'all of these fit'} into {size}"
    largest = min((point for point in fits), key=lambda point: (-point.keep, found.losses(point)[0]))
    return (
        f"the largest that fits into {size} is keep {largest.keep}: {found.losses(largest)[0]:+.1%} perplexity on "
        f"{found.parent[0].text} by {largest.method}"
    )


def _verdict(found: Sweep, method: str, point: SweepPoint | None, max_loss: float) -> Iterator[str]:
    """Yield lines of text about the smallest specialist within a loss."""
    text = found.parent[0].text
    if point is None:
        yield f"{method}: every keep that was tried costs more than {max_loss:.1%} perplexity on {text}"
        return
    yield (
        f"{method}: keep {point.keep} is the smallest within {max_loss:.1%}: {found.losses(point)[0]:+.1%} "
        f"perplexity on {text}, {gigabytes(point.n_bytes)} instead of {gigabytes(found.n_bytes)}"
    )
    if slower := slower_on_cuda(found.n_experts, point.keep):
        yield slower


def _print(found: Sweep, needed: Mapping[int, int]) -> None:
    """Print a row for each mask and text; one row for all texts would be too wide for a terminal."""
    memory = ["memory"] if needed else []
    columns = ["method", "keep", "size", *memory, "text", "perplexity", "loss", "KL", "same top"]
    rows = []
    unmasked = found.unmasked
    for point in (unmasked, *found.points):
        head = [point.method, str(point.keep), gigabytes(point.n_bytes)]
        head += [gibibytes(needed[point.keep])] if needed else []
        for result, loss in zip(point.evaluations, found.losses(point), strict=True):
            row = [*head, result.text, f"{result.perplexity:.3f}"]
            if point is not unmasked:
                row += [f"{loss:+.1%}", f"{result.kl_divergence:.4f}", f"{result.top1_agreement:.1%}"]
            rows.append(row)
            head = [""] * len(head)
    print_table("Perplexity of the live-masked parent, and its distance to the unmasked one", columns, rows)
