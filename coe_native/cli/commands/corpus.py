"""The commands ``coe-native corpus stats`` and ``coe-native corpus sample``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.options import Reading, force_option, json_option, needs_extra, reading_options
from coe_native.cli.output import print_json, print_table, say, say_skipped
from coe_native.cli.types import COUNT, FILE, MODEL
from coe_native.errors import InputError
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.corpus.corpora import Corpus

_by_option = click.option("--by", metavar="COLUMN", help="Column of .jsonl and .parquet files to group by.")
_near_option = click.option(
    "--near",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.8,
    show_default=True,
    help="Share of five-word sequences that near duplicates have in common.",
)
_paths_argument = click.argument("paths", type=FILE, nargs=-1, required=True)


@click.group(name="corpus")
def command() -> None:
    """Show statistics of text before it is profiled, and draw samples from it."""


@command.command(name="stats", cls=Command)
@_paths_argument
@click.option("--model", type=MODEL, help="Model whose tokenizer counts tokens. Its weights are not read.")
@_by_option
@_near_option
@reading_options
@json_option
def stats_command(
    paths: tuple[Path, ...], model: Path | None, by: str | None, near: float, reading: Reading, as_json: bool
) -> None:
    """Count the documents, tokens and duplicates of PATHS, by source or by column."""
    import contextlib

    from coe_native.llama.loaded_model import LoadedModel

    with needs_extra("corpus"):
        import datasketch  # noqa: F401
    from coe_native.corpus.statistics import stats

    read = reading.corpora(paths, label=by)
    say_skipped(read)
    with contextlib.ExitStack() as stack:
        loaded = (
            None
            if model is None
            else stack.enter_context(LoadedModel(model, n_ctx=32, n_batch=32, tokenizer_only=True))
        )
        found = stats(read, None if loaded is None else loaded.text, threshold=near)
    if as_json:
        print_json({"sources": [asdict(source) for source in found], "columns": _columns(read)})
        return
    for corpus in read:
        if corpus.columns_read:
            ignored = ", ".join(f"{column} ({share:.0%} of the text)" for column, share in corpus.columns_ignored)
            say(
                f"{corpus.name}: read {', '.join(corpus.columns_read)}"
                + (f"; not read: {ignored}" if ignored else "")
            )
    for source in found:
        if source.with_special:
            texts = counted(source.with_special, "text")
            say(
                f"{source.name}: {texts} with special tokens of the model, read as ordinary characters; pass "
                "--parse-special if a chat template has rendered them"
            )
    _say_compared(*(sum(getattr(source, name) for source in found) for name in ("compared", "documents")))
    measure = "characters" if model is None else "tokens"
    total = sum(getattr(source, measure) for source in found)
    rows = [
        [
            source.name,
            f"{source.documents:,}",
            f"{source.characters:,}",
            *([] if source.tokens is None else [f"{source.tokens:,}"]),
            f"{getattr(source, measure) / max(total, 1):.1%}",
            str(source.duplicates),
            str(source.near_duplicates),
        ]
        for source in found
    ]
    if len(found) > 1:
        sums = [sum(getattr(s, name) for s in found) for name in ("documents", "characters")]
        tokens = [] if model is None else [f"{total:,}"]
        twins = [str(sum(getattr(s, name) for s in found)) for name in ("duplicates", "near_duplicates")]
        rows.append(["all", *(f"{n:,}" for n in sums), *tokens, "100.0%", *twins])
    columns = [
        "source" if by is None else by,
        "documents",
        "characters",
        *(["tokens"] if model else []),
        f"share of {measure}",
    ]
    print_table("", [*columns, "duplicates", "near duplicates"], rows)


def _say_compared(n_compared: int, n_documents: int) -> None:
    if n_compared < n_documents:
        compared = f"{n_compared:,} of {n_documents:,} documents"
        say(f"near duplicates were looked for among {compared}, as many as memory allows")


def _columns(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Return, for each corpus with records, the columns that were read, and the share of text in the others."""
    return {
        corpus.name: {"read": list(corpus.columns_read), "ignored": dict(corpus.columns_ignored)}
        for corpus in corpora
        if corpus.columns_read
    }


@command.command(name="sample", cls=Command)
@_paths_argument
@click.option("-o", "--output", type=FILE, required=True, help=".jsonl file to write.")
@_by_option
@click.option("--size", type=COUNT, help="Documents to draw in all, in proportion to the sizes of the strata.")
@click.option("--cap", type=COUNT, help="Maximum documents of each stratum.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random draw.")
@_near_option
@click.option("--keep-duplicates", is_flag=True, help="Keep duplicates and near duplicates.")
@reading_options
@force_option
@json_option
def sample_command(
    paths: tuple[Path, ...],
    output: Path,
    by: str | None,
    size: int | None,
    cap: int | None,
    seed: int,
    near: float,
    keep_duplicates: bool,
    reading: Reading,
    force: bool,
    as_json: bool,
) -> None:
    """Draw documents from PATHS at random, by stratum: a source, or a value of a column.

    For example, a corpus of a benchmark's questions: corpus sample test.parquet --by category --cap 50 -o
    corpus.jsonl
    """
    from collections import Counter

    from coe_native.files.atomic import check_target, replacing

    if not keep_duplicates:
        with needs_extra("corpus"):
            import datasketch  # noqa: F401
    from coe_native.corpus.sampling import lines, sample

    if output.suffix != ".jsonl":
        raise InputError(f"{output}: is written with one document a line; give it a name that ends in .jsonl")
    check_target(output, force=force, inputs=paths)
    read = reading.corpora(paths, label=by)
    say_skipped(read)
    found = sample(read, size=size, cap=cap, seed=seed, threshold=None if keep_duplicates else near)
    drawn, there = found.documents, found.available
    with replacing(output) as file:
        file.writelines(lines(drawn, by))
    strata = Counter(document.label for document in drawn)
    if as_json:
        print_json({"corpus": str(output), "documents": len(drawn), "of": there, "strata": dict(strata)})
        return
    _say_compared(found.compared, found.available)
    if size is not None and len(drawn) < size:
        reasons = {"--cap": cap is not None, "the removal of duplicates": not keep_duplicates}
        causes = " and ".join(name for name, holds in reasons.items() if holds)
        say(f"fewer than the requested {size:,} documents were available" + (f" after {causes}" if causes else ""))
    of_each = f" in {len(strata)} strata of {by}" if by is not None else ""
    say(f"{output}: {len(drawn):,} of {there:,} documents{of_each}")
