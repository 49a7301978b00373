"""Parquet and Arrow: each row is one record."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from coe_native.corpus.readers.columnar_helper import PARQUET, ColumnarFile
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
    kind = "Parquet" if inner_suffix(path) in PARQUET else "Arrow"
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: reading {kind} needs pyarrow: pip install pyarrow")
    with _uncompressed(path) as uncompressed, ColumnarFile(uncompressed) as file:
        try:
            present, texts = file.column_names()
            if len(set(present)) < len(present):
                yield InputError(f"{path}: names a column twice; rename one")
                return
            known = named or KNOWN_COLUMNS
            if not set(known) & {*present, *(name.lower() for name in present)}:
                yield no_text(str(path), named, present)
                return
            # Others may hold values that Python has no type for.
            wanted = [name for name in present if name in (*known, *texts, *also) or name.lower() in known]
            for row, fields in enumerate(file.records(wanted), 1):
                yield Record(f"{path}:{row}", fields)
        except InputError as error:
            yield InputError(f"{path}: cannot be read as {kind} ({error}); write it again")


@contextlib.contextmanager
def _uncompressed(path: Path) -> Iterator[Path]:
    """Yield a file, or a temporary one with its contents if it is compressed as a whole."""
    suffix = inner_suffix(path)
    with open_corpus_file(path) as file:  # refuses pipes, and pointers to files
        if path.suffix.lower() == suffix:
            yield path
            return
        with tempfile.NamedTemporaryFile(prefix="coe-native-", suffix=suffix) as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            yield Path(copy.name)
