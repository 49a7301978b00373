"""Parquet and Arrow: each row is one document."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from coe_native.corpus.readers.columnar_helper import ColumnarFile
from coe_native.corpus.readers.decoding import Found
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import KNOWN_COLUMNS, Columns, document_of, no_text
from coe_native.errors import InputError


def read_columnar(path: Path, columns: Columns) -> Iterator[Found]:
    """Yield the document of each row.

    Raises:
        InputError: pyarrow is not installed.
    """
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: reading {kind} needs pyarrow: pip install pyarrow")
    with open_corpus_file(path):
        pass  # refuses pipes, and pointers to files
    with ColumnarFile(path) as file:
        try:
            present, texts = file.column_names()
            known = columns.texts or KNOWN_COLUMNS
            if not set(known) & set(present):
                yield no_text(str(path), columns.texts, present)
                return
            # Others may hold values that Python has no type for.
            wanted = [name for name in present if name in known or name in texts or name == columns.label]
            for row, record in enumerate(file.records(wanted), 1):
                try:
                    yield document_of(record, columns, f"{path}:{row}")
                except InputError as error:
                    yield error
        except InputError as error:
            yield InputError(f"{path}: cannot be read as {kind} ({error}); write it again")
