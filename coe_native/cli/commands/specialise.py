"""The command ``coe-native specialise``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
    say_offload,
)
from coe_native.cli.output import print_table, say, say_skipped
from coe_native.cli.progress import step_progress
from coe_native.cli.sampling_options import sampling_options
from coe_native.cli.types import COUNT, FILE, MODEL, Share
from coe_native.errors import InputError
from coe_native.units import gibibytes, gigabytes

if TYPE_CHECKING:
    from coe_native.corpus.corpora import Corpus
    from coe_native.llama.options import ModelOptions
    from coe_native.model.header import ModelHeader
    from coe_native.model.sampler_defaults import SamplerDefaults
    from coe_native.recipes.search import Found
    from coe_native.recipes.specialise import Specialist

DEFAULT_TYPES = ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS")
"""Quantisations that are tried unless others are named, from the largest to the smallest."""


class _Types(click.ParamType["tuple[str, ...]"]):
    """Names of file types, written ``Q4_K_M,Q3_K_M``, or ``none``."""

    name = "types"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = str(value).split(",")
        if not all(names):
            self.fail(f"{value!r} is not a list of types; write it like Q4_K_M,Q3_K_M", param, ctx)
        return () if names == ["none"] else tuple(names)


class _Bound(click.ParamType["tuple[str, Path, float]"]):
    """A text with a bound, written ``NAME=PATH:MAX_LOSS``."""

    name = "bound"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path, float]:
        name, _, rest = str(value).partition("=")
        path, _, bound = rest.rpartition(":")
        if not name or not path:
            self.fail(f"{value!r} is not a text with a bound; write it like tools=calls.jsonl:3%", param, ctx)
        return name, Path(path), Share().convert(bound, param, ctx)


@click.command(name="specialise", cls=Command)
@click.argument("models", metavar="MODEL…", type=MODEL, nargs=-1, required=True)
@corpus_option
@click.option("-o", "--output", type=FILE, required=True, help="GGUF file to write.")
@click.option("--text", "texts", multiple=True, type=FILE, help="Held-out text; the corpus itself if not given.")
@mask_options
@click.option(
    "--types",
    type=_Types(),
    metavar="TYPE,TYPE,…",
    help="Quantisations that are tried too with --fit and with bounds; none: only the files given.  "
    f"[default: {','.join(DEFAULT_TYPES)}]",
)
@click.option("--type", "file_type", metavar="TYPE", help="Write the specialist in this quantisation.")
@click.option(
    "--max-loss",
    type=Share(),
    help="Write the smallest specialist whose perplexity on the first text rises by at most this (5%).",
)
@click.option(
    "--protect",
    "protected",
    multiple=True,
    type=_Bound(),
    metavar="NAME=PATH:MAX_LOSS",
    help="Other text whose perplexity may rise by at most this (repeatable): tools=calls.jsonl:3%.",
)
@click.option(
    "--fit-ctx",
    type=COUNT,
    default=CTX_IN_USE,
    show_default=True,
    help="Tokens of the context that must fit too, with --fit.",
)
@sampling_options
@reading_options
@model_options()
@force_option
@json_option
def command(
    models: tuple[Path, ...],
    corpora: tuple[Path, ...],
    output: Path,
    texts: tuple[Path, ...],
    types: tuple[str, ...] | None,
    file_type: str | None,
    max_loss: float | None,
    protected: tuple[tuple[str, Path, float], ...],
    fit_ctx: int,
    sampling: SamplerDefaults | None,
    reading: Reading,
    choice: MaskChoice,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Profile, mask, prune, verify and evaluate MODEL for one kind of text, and write a report.

    With --fit, the number of experts and the quantisation are chosen that lose least on the first text within this
    much memory: of the files given, which are of one model, and of types that the largest can be quantised to.
    With --max-loss or --protect and without --fit, the smallest specialist that keeps these bounds is written.
    """
    from coe_native.model.header import ModelHeader

    headers = [ModelHeader(model) for model in models]
    given_texts = (*texts, *(path for _, path, _ in protected))
    inputs = (*(path for moe in headers for path in moe.paths), *corpora, *given_texts, *choice.passes.inputs)
    bounded = max_loss is not None or bool(protected)
    if len(models) == 1 and choice.fit_bytes is None and file_type is None and not bounded:
        if types is not None:
            raise InputError("--types is for --fit, --max-loss and --protect; use --type with --keep")
        made = _to_mask(
            models[0], corpora, output, texts, fit_ctx, sampling, reading, choice, options, force, inputs
        )
    else:
        wanted = _Wanted(headers, types, file_type, max_loss, protected, fit_ctx, sampling)
        made = _to_goal(wanted, corpora, output, texts, reading, choice, options, force, inputs)
    if as_json:
        click.echo(json.dumps(json.loads(output.with_name(f"{output.stem}.report.json").read_bytes()), indent=1))
        return
    made.print_table()
    if not texts:
        say("Text that was profiled makes a specialist look better than it is; pass other text with --text.")
    for path in sorted(set(texts) & set(corpora)):
        say(f"{path} was profiled too, so it is not held out.")
    made.say_result()


def _to_mask(
    model: Path,
    corpora: tuple[Path, ...],
    output: Path,
    texts: tuple[Path, ...],
    fit_ctx: int,
    sampling: SamplerDefaults | None,
    reading: Reading,
    choice: MaskChoice,
    options: ModelOptions,
    force: bool,
    inputs: tuple[Path, ...],
) -> _Result:
    """Write a specialist with a number of experts."""
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader
    from coe_native.profiling.run import DOCUMENTS_AT_ONCE
    from coe_native.recipes.specialise import check_outputs, specialise

    moe = ModelHeader(model)
    check_outputs(output, force=force, inputs=(*moe.paths, *inputs))
    chosen = choice.load(moe, for_use(options, fit_ctx))
    moe.check_cut(chosen.keep)
    read, held_out = _read(corpora, texts, reading)
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
            sampling=sampling,
            close_parent=True,
            force=force,
            inputs=inputs,
            watchers=watchers,
        )
    return _Masked(made, moe.n_bytes, held_out=bool(texts))


@dataclass(frozen=True)
class _Wanted:
    """What the search is asked for, as it was given."""

    headers: Sequence[ModelHeader]
    types: tuple[str, ...] | None
    file_type: str | None
    max_loss: float | None
    protected: Sequence[tuple[str, Path, float]]
    fit_ctx: int
    sampling: SamplerDefaults | None


def _to_goal(
    wanted: _Wanted,
    corpora: tuple[Path, ...],
    output: Path,
    texts: tuple[Path, ...],
    reading: Reading,
    choice: MaskChoice,
    options: ModelOptions,
    force: bool,
    inputs: tuple[Path, ...],
) -> _Result:
    """Find and write the specialist that loses least."""
    from coe_native.recipes.search import Goal, Protected, specialise_to_goal

    if choice.keep is not None and choice.fit_bytes is not None:
        raise InputError("say how many experts to keep: --keep NUMBER or --fit SIZE, and not both")
    bounded = wanted.max_loss is not None or bool(wanted.protected)
    if choice.keep is None and choice.fit_bytes is None and not bounded:
        raise InputError("say how large the specialist may be: --keep NUMBER, --fit SIZE, or --max-loss SHARE")
    if wanted.file_type is not None and wanted.types is not None:
        raise InputError("give --type for one quantisation, or --types for several to choose from")
    names = [*map(str, texts), *(name for name, _, _ in wanted.protected)]
    if len(set(names)) < len(names):
        raise InputError("two texts have the same name; give each of --text and --protect its own")
    types = wanted.types
    if types is None:
        types = (wanted.file_type,) if wanted.file_type else (() if choice.keep is not None else DEFAULT_TYPES)
    methods = choice.passes.methods(() if choice.method is None else (choice.method,))
    read, held_out = _read(corpora, texts, reading)
    protected = tuple(Protected(name, reading.corpus(path), bound) for name, path, bound in wanted.protected)
    use = for_use(options, wanted.fit_ctx)
    if choice.fit_bytes is not None:
        say_offload(use)
    with step_progress() as watchers:
        found = specialise_to_goal(
            wanted.headers,
            options,
            read,
            output,
            texts=held_out,
            goal=Goal(choice.keep, choice.fit_bytes, use, wanted.max_loss, protected),
            types=types,
            only_types=wanted.file_type is not None,
            method=methods[0] if methods else None,
            passes=choice.passes.load(),
            sampling=wanted.sampling,
            force=force,
            inputs=inputs,
            watchers=watchers,
            note=say,
        )
    return _Searched(found)


def _read(
    corpora: tuple[Path, ...], texts: tuple[Path, ...], reading: Reading
) -> tuple[list[Corpus], list[Corpus]]:
    """Return the calibration text and the held-out text."""
    read = reading.corpora(corpora)
    say_skipped(read)
    return read, [reading.corpus(path) for path in texts] or read


class _Result(Protocol):
    """Prints what was made."""

    def print_table(self) -> None:
        """Print the table of results."""

    def say_result(self) -> None:
        """Print what was written, to standard error."""


@dataclass(frozen=True)
class _Masked:
    """A specialist with a given number of experts."""

    made: Specialist
    parent_bytes: int
    held_out: bool

    def print_table(self) -> None:
        made = self.made
        text = "held-out text" if self.held_out else "the profiled text"
        print_table(
            f"keep {made.mask.keep} of {made.mask.n_experts}: {gigabytes(self.parent_bytes)} -> "
            f"{gigabytes(made.path.stat().st_size)}; perplexity on {text}",
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

    def say_result(self) -> None:
        from coe_native.surgery.notice import safety_notice

        say(f"{self.made.path} is verified; its profile, mask and report are next to it.")
        say(safety_notice(self.made.method))


@dataclass(frozen=True)
class _Searched:
    """The specialist that loses least."""

    found: Found

    def print_table(self) -> None:
        rows = []
        for trial in self.found.trials:
            candidate = trial.candidate
            mark = ">" if trial is self.found.chosen else "*" if trial.is_on_frontier else " "
            head = [f"{mark} {candidate.name}", str(candidate.keep), gigabytes(candidate.n_bytes)]
            head.append("" if candidate.memory is None else gibibytes(candidate.memory))
            for result, loss in zip(trial.evaluations, trial.losses, strict=True):
                rows.append([*head, result.text, f"{result.perplexity:.3f}", f"{loss:+.1%}"])
                head = [""] * len(head)
        print_table(
            f"Perplexity under live masks, compared with {self.found.parent.path.name}\n"
            ">: written; *: nothing as small loses less",
            ["model", "keep", "size", "memory", "text", "perplexity", "loss"],
            rows,
        )

    def say_result(self) -> None:
        from coe_native.surgery.notice import safety_notice

        found = self.found
        for candidate in found.skipped:
            say(f"not judged: {candidate.name}: {candidate.skipped}")
        for before, after in zip(found.judged_parent, found.written, strict=True):
            say(f"{found.path}: perplexity {after.perplexity:.3f} on {after.text}, {after.loss(before):+.1%}")
        mask, chosen = found.chosen.mask, found.chosen.candidate
        kept = "all experts" if mask is None else f"{chosen.keep} of {found.parent.n_experts} experts"
        say(
            f"{found.path} is verified: {chosen.name} with {kept}, {gigabytes(found.path.stat().st_size)} instead "
            f"of {gigabytes(found.parent.n_bytes)}"
        )
        if mask is not None:
            say(safety_notice(mask.provenance.get("method")))
