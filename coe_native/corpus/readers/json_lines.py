"""JSON Lines: each line is one document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coe_native.corpus.readers.decoding import Found, decoded
from coe_native.corpus.readers.records import Columns, document_of
from coe_native.errors import InputError
from coe_native.files.regular import open_regular


def read_json_lines(path: Path, columns: Columns) -> Iterator[Found]:
    """Yield the document of each line that is not blank."""
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _document(line, columns, f"{path}:{number}")


def _document(line: bytes, columns: Columns, place: str) -> Found:
    try:
        return document_of(_record(line, place), columns, place)
    except InputError as error:
        return error


def _record(line: bytes, place: str) -> dict[str, Any]:
    text = decoded(line, place)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: is not a JSON object")
    return record
