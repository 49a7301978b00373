"""Comma- or tab-separated values: each row is one record, named by the columns of the first row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from coe_native.corpus.readers.decoding import NotTextError, as_text
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import FoundRecord, Record
from coe_native.errors import InputError

_MOST_FIELD = 1 << 26
"""Largest number of characters of a field."""


def table(path: Path, encoding: str | None = None, *, delimiter: str = ",") -> Iterator[FoundRecord]:
    """Yield the record of each row, without its empty fields."""
    csv.field_size_limit(_MOST_FIELD)
    with open_corpus_file(path) as file:
        text = as_text(file, encoding, newline="")
        rows = csv.DictReader(text, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in rows.fieldnames or ()]
            if len(set(names)) < len(names):
                yield InputError(f"{path}:1: names a column twice; rename one")
                return
            rows.fieldnames = names
            for row in rows:
                place = f"{path}:{rows.line_num}"
                if None in row:
                    yield InputError(f"{place}: has more fields than the first line names")
                else:
                    yield Record(place, {str(name): value for name, value in row.items() if value})
        except UnicodeDecodeError as error:
            yield NotTextError(f"{path}:{rows.line_num + 1}: is not {error.encoding} text")
        except csv.Error as error:
            yield InputError(f"{path}:{rows.line_num}: is not CSV ({error}); nothing after it is read")
        finally:
            text.detach()
