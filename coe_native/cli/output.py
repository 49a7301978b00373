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
    from coe_native.corpus.documents import Corpus
    from coe_native.model.header import ModelHeader


def say(message: str) -> None:
    """A message to standard error."""
    click.echo(printable(message), err=True)


def say_skipped(corpora: Sequence[Corpus]) -> None:
    """Says how many files of directories were passed by."""
    for corpus in corpora:
        if corpus.n_skipped:
            skipped = counted(corpus.n_skipped, "file")
            say(f"{corpus.name}: skipped {skipped}: hidden, not UTF-8 text, or links out of it")


def print_json(value: Any) -> None:
    """One JSON object to standard output."""
    click.echo(json.dumps(value, indent=1))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich ends the process here; how it ends is for the command line's own main to say."""
        raise BrokenPipeError


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, to_stderr: bool = False
) -> None:
    """An aligned table to standard output: the first column to the left, the others to the right."""
    table = Table(pad_edge=False, box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))  # as it is: a file's name may look like markup
    if title:
        click.echo(title, err=to_stderr)
    # A pipe has no width to fold for.
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    console = _Console(stderr=to_stderr, width=None if terminal else 10_000)
    console.print(table)


def size_of(model: ModelHeader) -> str:
    """A model's name and size, and in how many files."""
    files = f" in {len(model.paths)} files" if len(model.paths) > 1 else ""
    return f"{model.path}: {gigabytes(model.n_bytes)}{files}"
