"""Results on standard output, messages on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coe_native.errors import printable
from coe_native.units import counted, gigabytes

if TYPE_CHECKING:
    from coe_native.corpus.corpora import Corpus
    from coe_native.model.header import ModelHeader
    from coe_native.profiling.imatrix import InputWatcher


_MUCH = 0.1
"""Share of a corpus's text in columns that are not read, from which this is worth a warning."""

_MOST_NAMED = 8
"""Columns that it names."""


def say(message: str) -> None:
    """Print a message to standard error."""
    click.echo(printable(message), err=True)


def say_skipped(corpora: Sequence[Corpus]) -> None:
    """Print which files of directories were skipped, and which columns with much text were not read."""
    for corpus in corpora:
        if corpus.skipped:
            reasons = ", ".join(f"{number} ({reason})" for reason, number in sorted(corpus.skipped))
            say(f"{corpus.name}: skipped {reasons}")
        if sum(share for _, share in corpus.columns_ignored) > _MUCH:
            largest = sorted(corpus.columns_ignored, key=lambda column: -column[1])[:_MOST_NAMED]
            named = ", ".join(f"{name} ({share:.0%})" for name, share in largest)
            say(f"{corpus.name}: not read: {named} of the text; name the columns to read with --field")


def say_few_tokens(inputs: InputWatcher, min_tokens: int) -> None:
    """Print how many experts an importance matrix has too few tokens of."""
    if inputs.n_few:
        say(
            f"{counted(inputs.n_few, 'expert')} saw fewer than {counted(min_tokens, 'token')}, and got the mean "
            "of their layer; more text would give them values of their own"
        )


def print_json(value: Any) -> None:
    """Print a value to standard output, as one JSON object."""
    click.echo(json.dumps(value, indent=1))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, which `main` handles; rich would end the process here."""
        raise BrokenPipeError


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, to_stderr: bool = False
) -> None:
    """Print a table with the first column aligned left and the others right.

    Args:
        title: The line above the table; empty: none.
        columns: Names of the columns.
        rows: Texts of the cells, row by row.
        to_stderr: Print to standard error instead of standard output.
    """
    table = Table(pad_edge=False, box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        table.add_row(
            *(Text(printable(text)) for text in row)
        )  # not markup, though a file's name may look like it
    if title:
        click.echo(title, err=to_stderr)
    # Rows are not folded in a pipe.
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    console = _Console(stderr=to_stderr, width=None if terminal else 10_000)
    console.print(table)


def size_of(model: ModelHeader) -> str:
    """Return a model's path, size and number of files, as text."""
    files = f" in {len(model.paths)} files" if len(model.paths) > 1 else ""
    return f"{model.path}: {gigabytes(model.n_bytes)}{files}"
