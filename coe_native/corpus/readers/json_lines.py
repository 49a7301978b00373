"""JSON Lines: each line is one document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from coe_native.corpus.readers.decoding import Found, NotTextError, decoded, lines
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import Columns, document_of
from coe_native.errors import InputError


def read_json_lines(path: Path, columns: Columns) -> Iterator[Found]:
    """Yield the document of each line that is not blank."""
    with open_corpus_file(path) as file:
        yield from documents_of_lines(file, columns, path)


def documents_of_lines(file: BinaryIO, columns: Columns, path: Path) -> Iterator[Found]:
    """Yield the document of each line of an opened file."""
    number = 0
    try:
        for number, line in enumerate(lines(file, columns.encoding), 1):
            if line.strip():
                yield _document(line, columns, f"{path}:{number}")
    except UnicodeDecodeError as error:
        yield NotTextError(f"{path}:{number + 1}: is not {error.encoding} text")


def _document(line: bytes, columns: Columns, place: str) -> Found:
    try:
        return document_of(_record(line, place), columns, place)
    except InputError as error:
        return error


def _record(line: bytes, place: str) -> dict[str, Any]:
    return checked_record(parsed(decoded(line, place), place), place)


def parsed(text: str, place: str) -> Any:
    """Return what a JSON text says.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is not JSON ({error})") from error


def checked_record(value: Any, place: str) -> dict[str, Any]:
    """Return a value that must be a record.

    Raises:
        InputError: It is not a JSON object.
    """
    if not isinstance(value, dict):
        raise InputError(f"{place}: is not a JSON object")
    return value
