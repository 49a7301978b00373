"""Comma- or tab-separated values: each row is one record, named by the columns of the first row."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path

from coe_native.corpus.readers.decoding import NotTextError, as_text, not_text
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import FoundRecord, Record
from coe_native.errors import InputError

_DELIMITERS = (",", ";", "\t", "|")
"""What separates fields in .csv files. Spreadsheets write semicolons where the comma is in numbers."""

_MOST_FIELD = 1 << 26
"""Largest number of characters of a field."""


def table(path: Path, encoding: str | None = None, *, delimiter: str = ",") -> Iterator[FoundRecord]:
    """Yield the record of each row, without its empty fields."""
    csv.field_size_limit(_MOST_FIELD)
    with open_corpus_file(path) as file:
        text = as_text(file, encoding, newline="")
        n_read = 0
        try:
            first = text.readline()
            lines = itertools.chain([first], text)
            rows = csv.reader(lines, delimiter=_delimiter(first, delimiter), strict=True)
            names = [name.strip() for name in next(rows, [])]
            if len(set(names)) < len(names):
                yield InputError(f"{path}:1: names a column twice; rename one")
                return
            for row in filter(None, rows):
                n_read = rows.line_num
                place = f"{path}:{n_read}"
                if len(row) != len(names):
                    yield InputError(f"{place}: has {len(row)} fields, and the first line names {len(names)}")
                else:
                    yield Record(place, {name: value for name, value in zip(names, row, strict=True) if value})
        except UnicodeError as error:
            yield NotTextError(f"{path}:{n_read + 1}: {not_text(error)}")
        except csv.Error as error:
            yield InputError(f"{path}:{n_read + 1}: is not CSV ({error}); nothing after it is read")
        finally:
            text.detach()


def _delimiter(header: str, usual: str) -> str:
    """Return what separates the fields of a table: the usual character if the first line has it."""
    found = max(_DELIMITERS, key=header.count)
    return usual if usual in header or found not in header else found
