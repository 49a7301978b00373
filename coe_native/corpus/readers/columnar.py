"""Parquet and Arrow: each row is one record."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from coe_native.corpus.readers.columnar_helper import ColumnarFile
from coe_native.corpus.readers.opening import inner_suffix, open_corpus_file
from coe_native.corpus.readers.records import KNOWN_COLUMNS, FoundRecord, Record, no_text
from coe_native.errors import InputError


def columnar(path: Path, named: Sequence[str] = (), also: Sequence[str] = ()) -> Iterator[FoundRecord]:
    """Yield the record of each row: of the columns of text, and of those that are known or named.

    Args:
        path: The file.
        named: Columns of which there must be one; empty: KNOWN_COLUMNS.
        also: Further columns.

    Raises:
        InputError: pyarrow is not installed.
    """
    kind = "Parquet" if inner_suffix(path) == ".parquet" else "Arrow"
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: reading {kind} needs pyarrow: pip install pyarrow")
    if path.suffix.lower() not in (".parquet", ".arrow"):
        raise InputError(f"{path}: is compressed as a whole, which {kind} files are inside; decompress it")
    with open_corpus_file(path):
        pass  # refuses pipes, and pointers to files
    with ColumnarFile(path) as file:
        try:
            present, texts = file.column_names()
            if len(set(present)) < len(present):
                yield InputError(f"{path}: names a column twice; rename one")
                return
            known = named or KNOWN_COLUMNS
            if not set(known) & set(present):
                yield no_text(str(path), named, present)
                return
            # Others may hold values that Python has no type for.
            wanted = [name for name in present if name in (*known, *texts, *also)]
            for row, fields in enumerate(file.records(wanted), 1):
                yield Record(f"{path}:{row}", fields)
        except InputError as error:
            yield InputError(f"{path}: cannot be read as {kind} ({error}); write it again")
