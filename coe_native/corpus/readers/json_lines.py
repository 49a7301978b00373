"""JSON Lines: each line is one record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from coe_native.corpus.readers.decoding import NotTextError, decoded, lines, not_text
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import FoundRecord, Record
from coe_native.errors import InputError


class NotRecordsError(InputError):
    """A file that is not JSON, or whose JSON holds no records."""


def json_lines(path: Path, encoding: str | None = None) -> Iterator[FoundRecord]:
    """Yield the record of each line that is not blank."""
    with open_corpus_file(path) as file:
        yield from records_of_lines(file, path, encoding)


def records_of_lines(file: BinaryIO, path: Path, encoding: str | None = None) -> Iterator[FoundRecord]:
    """Yield the record of each line of an opened file."""
    number = 0
    try:
        for number, line in enumerate(lines(file, encoding), 1):
            if line.strip():
                yield _record(line, f"{path}:{number}")
    except UnicodeError as error:
        yield NotTextError(f"{path}:{number + 1}: {not_text(error)}")


def _record(line: bytes, place: str) -> FoundRecord:
    try:
        return record_of(parsed(decoded(line, place), place), place)
    except InputError as error:
        return error


def parsed(text: str, place: str) -> Any:
    """Return what a JSON text says.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotRecordsError(f"{place}: is not JSON ({error})") from error


def record_of(value: Any, place: str) -> FoundRecord:
    """Return a value that must be an object as a record."""
    if not isinstance(value, dict):
        advice = "; a file that is one list needs a name that ends in .json" * isinstance(value, list)
        return NotRecordsError(f"{place}: is not a JSON object{advice}")
    return Record(place, value)
