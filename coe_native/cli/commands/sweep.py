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
    say_offload,
)
from coe_native.cli.output import print_json, print_table, say, say_skipped
from coe_native.cli.progress import token_progress
from coe_native.cli.types import COUNT, FILE, MODEL, Share, Size
from coe_native.errors import InputError
from coe_native.routing.scores import METHODS, check_method
from coe_native.units import gibibytes, gigabytes

if TYPE_CHECKING:
    from coe_native.corpus.corpora import Corpus
    from coe_native.evaluation.sweep import Sweep, SweepPoint
    from coe_native.evaluation.sweep_checkpoint import SweepCheckpoint
    from coe_native.llama.options import ModelOptions
    from coe_native.model.header import ModelHeader
    from coe_native.routing.profile import RoutingProfile


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


@click.command(name="sweep", cls=Command)
@click.argument("models", metavar="MODEL…", type=MODEL, nargs=-1, required=True)
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
    type=Share(),
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
@click.option(
    "--reference",
    type=MODEL,
    help="Model that losses are relative to; if not given, MODEL, or the largest of several.",
)
@pass_options
@click.option("-o", "--output", type=FILE, help="JSON file to write, for `report --sweep`.")
@click.option("--plot", type=FILE, help="HTML page with a plot, to write.")
@click.option("--csv", "as_csv", is_flag=True, help="Print everything as CSV.")
@click.option("--resume", is_flag=True, help="Resume from OUTPUT.checkpoint if it exists.")
@reading_options
@model_options()
@force_option
@json_option
def command(
    models: tuple[Path, ...],
    profile: Path,
    texts: tuple[tuple[str, Path], ...],
    keeps: tuple[int, ...] | None,
    methods: tuple[str, ...],
    max_loss: float,
    fit_bytes: int | None,
    fit_ctx: int,
    reference: Path | None,
    output: Path | None,
    plot: Path | None,
    as_csv: bool,
    resume: bool,
    reading: Reading,
    passes: PassChoice,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Evaluate MODEL under masks of many sizes, to show how small a specialist can be.

    Give several files of one model, such as quantisations of it, to find out whether fewer bits or fewer experts
    lose less. Each is loaded once and masked live; no model is written. Each mask's perplexity is measured, and
    its KL divergence and top-1 agreement with the unmasked model, or with the reference.
    """
    from coe_native.model.header import ModelHeader

    _check(texts, output, plot, as_csv=as_csv, as_json=as_json, resume=resume)
    headers = [ModelHeader(model) for model in (*models, *(() if reference is None else (reference,)))]
    inputs = (*(path for moe in headers for path in moe.paths), profile, *(path for _, path in texts))
    checkpoint = _checkpoint(output, plot, resume=resume, force=force, inputs=inputs)
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
    use = None if fit_bytes is None else for_use(options, fit_ctx)
    if use is not None:
        say_offload(use)
    of_masks = {"keeps": keeps, "methods": methods, "passes": mask_passes}
    found = _run(models, reference, options, use, checkpoint, routing, read, of_masks)
    if output is not None:
        found.save(output, force=force)
    if checkpoint is not None:
        checkpoint.remove()
    if plot is not None:
        sweep_page(plot, found)
    if as_json:
        print_json(_facts(found, max_loss))
    elif as_csv:
        click.echo(found.as_csv(), nl=False)
    else:
        _print(found)
        for line in _verdicts(found, max_loss, fit_bytes, fit_ctx):
            say(line)


def _checkpoint(
    output: Path | None, plot: Path | None, *, resume: bool, force: bool, inputs: tuple[Path, ...]
) -> SweepCheckpoint | None:
    """Check that the outputs can be written, and return the checkpoint of the sweep if it has an output."""
    from coe_native.evaluation.sweep_checkpoint import SweepCheckpoint
    from coe_native.files.atomic import check_target

    for path in (output, plot):
        if path is not None:
            check_target(path, force=force, inputs=inputs)
    if output is None:
        return None
    checkpoint = SweepCheckpoint(output, resume=resume, force=force, inputs=inputs)
    if plot is not None and plot.resolve() == checkpoint.path.resolve():
        raise InputError(f"{plot}: is the sweep's checkpoint; give --plot another name")
    return checkpoint


def _run(
    models: Sequence[Path],
    reference: Path | None,
    options: ModelOptions,
    use: ModelOptions | None,
    checkpoint: SweepCheckpoint | None,
    profile: RoutingProfile,
    texts: Mapping[str, Corpus],
    of_masks: Mapping[str, Any],
) -> Sweep:
    """Run the sweep, and leave a checkpoint if it is interrupted."""
    from coe_native.evaluation.sweep import default_keeps, sweep, sweep_files
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.surgery.fit import memory_of

    def memory(moe: ModelHeader, keep: int) -> int:
        assert use is not None
        return memory_of(moe, keep, use).total

    with token_progress("judging") as progress:
        shared: dict[str, Any] = {**of_masks, "checkpoint": checkpoint, "progress": progress}
        shared["memory"] = None if use is None else memory
        try:
            if len(models) > 1 or reference is not None:
                return sweep_files(models, options, profile, texts, reference=reference, **shared)
            with LoadedModel(models[0], options) as parent:
                shared["keeps"] = default_keeps(parent.moe) if shared["keeps"] is None else shared["keeps"]
                return sweep(parent, profile, texts, **shared)
        except BaseException as error:
            if checkpoint is not None and checkpoint.n_windows and not isinstance(error, InputError):
                checkpoint.save()
                say(f"{checkpoint.path}: has what was judged; run the same command with --resume to continue")
            raise


def _check(
    texts: Sequence[tuple[str, Path]],
    output: Path | None,
    plot: Path | None,
    *,
    as_csv: bool,
    as_json: bool,
    resume: bool,
) -> None:
    """Check that the options go together."""
    if as_csv and as_json:
        raise InputError("--csv and --json both print to standard output; give only one of them")
    if output is not None and plot is not None and output.resolve() == plot.resolve():
        raise InputError(f"{output}: cannot be the JSON file and the page at once; give --plot another name")
    if len({name for name, _ in texts}) < len(texts):
        raise InputError("--text: two texts have the same name; give each its own: own=… other=…")
    if resume and output is None:
        raise InputError("--resume continues from the checkpoint of an output: give -o FILE too")


def _facts(found: Sweep, max_loss: float) -> dict[str, Any]:
    """Return what --json prints."""
    facts = {**found.as_json(), "max_loss": max_loss}
    least = found.least_within(max_loss)
    facts["best"] = None if least is None else {"model": least.model, "method": least.method, "keep": least.keep}
    if not found.has_several:
        best = {method: found.smallest(method, max_loss) for method in found.methods}
        facts["smallest"] = {method: None if point is None else point.keep for method, point in best.items()}
        points = (found.unmasked, *found.points)
        facts["memory"] = {point.keep: point.memory for point in points if point.memory is not None}
    return facts


def _verdicts(found: Sweep, max_loss: float, fit_bytes: int | None, fit_ctx: int) -> Iterator[str]:
    """Yield what follows from a sweep, as lines of text."""
    best = {method: found.smallest(method, max_loss) for method in found.methods}
    if found.has_several:
        yield _least(found, max_loss)
    else:
        for method, point in best.items():
            yield from _smallest(found, method, point, max_loss)
    if fit_bytes is None:
        return
    size = f"{gibibytes(fit_bytes)} with a context of {fit_ctx} tokens"
    fits = [point for point in found.points if point.memory is not None and point.memory <= fit_bytes]
    if not fits:
        least = min(point.memory for point in found.points if point.memory is not None)
        yield f"none of the tried sizes fits into {size}: the smallest needs {gibibytes(least)}"
    elif found.has_several:
        chosen = min(fits, key=lambda point: (found.losses(point)[0], point.n_bytes))
        yield f"the least loss that fits into {size}: {_described(found, chosen)}"
    elif all(point is not None and point in fits for point in best.values()):
        yield f"{'it fits' if len(best) == 1 else 'all of these fit'} into {size}"
    else:
        largest = min(fits, key=lambda point: (-point.keep, found.losses(point)[0]))
        yield (
            f"the largest that fits into {size} is keep {largest.keep}: {found.losses(largest)[0]:+.1%} "
            f"perplexity on {found.parent[0].text} by {largest.method}"
        )


def _described(found: Sweep, point: SweepPoint) -> str:
    """Return a point as text."""
    kept = f"{point.keep} of {found.n_experts} experts" if point.mask else "all experts"
    return (
        f"{point.model} with {kept}, {gigabytes(point.n_bytes)}, {found.losses(point)[0]:+.1%} perplexity on "
        f"{found.parent[0].text}"
    )


def _least(found: Sweep, max_loss: float) -> str:
    """Return a line of text about the smallest point within a loss, of several models."""
    point = found.least_within(max_loss)
    if point is None:
        return f"everything that was tried costs more than {max_loss:.1%} perplexity on {found.parent[0].text}"
    return f"the smallest within {max_loss:.1%}: {_described(found, point)}"


def _smallest(found: Sweep, method: str, point: SweepPoint | None, max_loss: float) -> Iterator[str]:
    """Yield lines of text about the smallest specialist of a model within a loss."""
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


def _print(found: Sweep) -> None:
    """Print a row for each point and text; one row for all texts would be too wide for a terminal."""
    with_memory = any(point.memory is not None for point in found.points)
    several_methods = len(found.methods) > 1
    columns = ["model", *(["method"] if several_methods else [])] if found.has_several else ["method"]
    columns += [
        "keep",
        "size",
        *(["memory"] if with_memory else []),
        "text",
        "perplexity",
        "loss",
        "KL",
        "same top",
    ]
    rows = []
    unmasked = found.unmasked
    for point in found.points if found.has_reference else (unmasked, *found.points):
        head = [point.method]
        if found.has_several:
            name = "reference" if point is unmasked else point.model
            head = [f"{'*' if point.frontier else ' '} {name}", *(head if several_methods else [])]
        head += [str(point.keep), gigabytes(point.n_bytes)]
        if with_memory:
            head.append("" if point.memory is None else gibibytes(point.memory))
        for result, loss in zip(point.evaluations, found.losses(point), strict=True):
            row = [*head, result.text, f"{result.perplexity:.3f}", "" if point is unmasked else f"{loss:+.1%}"]
            if result.kl_divergence is not None and result.top1_agreement is not None:
                row += [f"{result.kl_divergence:.4f}", f"{result.top1_agreement:.1%}"]
            rows.append(row)
            head = [""] * len(head)
    if found.has_several:
        title = "Perplexity under live masks, compared with the reference's; *: nothing as small loses less"
    else:
        title = "Perplexity of the live-masked parent, and its distance to the unmasked one"
    print_table(title, columns, rows)
