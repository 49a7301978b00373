"""JSON files: a list of records, records line by line, or one object that has a list of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from coe_native.corpus.readers.decoding import Found, NotTextError, decoded
from coe_native.corpus.readers.json_lines import checked_record, documents_of_lines, parsed
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import KNOWN_COLUMNS, Columns, document_of
from coe_native.errors import InputError

_LISTS = ("data", "rows", "train", "examples", "instances")
"""Columns in which an object of a whole file holds its records."""

_CHUNK = 1 << 16


def read_json_file(path: Path, columns: Columns) -> Iterator[Found]:
    """Yield the document of each record."""
    with open_corpus_file(path) as file:
        start = file.read(_CHUNK)
    with open_corpus_file(path) as file:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _documents_of_list(file, columns, path)
        elif _is_whole(start.partition(b"\n")[0]):
            yield from documents_of_lines(file, columns, path)
        else:
            yield from _documents_of_object(file, columns, path)


def _is_whole(line: bytes) -> bool:
    """Return whether a line is a JSON object, so that each line is one."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _documents_of_object(file: BinaryIO, columns: Columns, path: Path) -> Iterator[Found]:
    try:
        record = checked_record(parsed(decoded(file.read(), str(path), columns.encoding), str(path)), str(path))
        listed = next((record[name] for name in _LISTS if isinstance(record.get(name), list)), None)
        if listed is None or any(name in record for name in columns.texts or KNOWN_COLUMNS):
            yield document_of(record, columns, str(path))
            return
    except InputError as error:
        yield error
        return
    yield from _documents(listed, columns, path)


def _documents_of_list(file: BinaryIO, columns: Columns, path: Path) -> Iterator[Found]:
    text = io.TextIOWrapper(file, columns.encoding or "utf-8-sig")
    try:
        yield from _documents(_items(text), columns, path)
    except UnicodeDecodeError as error:
        yield NotTextError(f"{path}: is not {error.encoding} text")
    except (ValueError, RecursionError) as error:
        yield InputError(f"{path}: is not JSON ({error})")
    finally:
        text.detach()


def _documents(values: Any, columns: Columns, path: Path) -> Iterator[Found]:
    for number, value in enumerate(values, 1):
        place = f"{path}[{number}]"
        try:
            yield document_of(checked_record(value, place), columns, place)
        except InputError as error:
            yield error


def _items(file: TextIO) -> Iterator[Any]:
    """Yield the items of a JSON list, of which only one at a time is in memory.

    Raises:
        ValueError: It is not JSON.
    """
    decoder = json.JSONDecoder()
    text = file.read(_CHUNK).lstrip()[1:]
    is_first = True
    while True:
        text, ended = _skipped(file, text.lstrip())
        if ended or text.startswith("]"):
            if ended or _skipped(file, text[1:].lstrip())[0]:
                raise ValueError("the list is not complete" if ended else "there is text after the list")
            return
        if not is_first:
            if not text.startswith(","):
                raise ValueError("items of the list are not separated by commas")
            text, _ = _skipped(file, text[1:].lstrip())
        item, text = _item(decoder, file, text)
        is_first = False
        yield item


def _skipped(file: TextIO, text: str) -> tuple[str, bool]:
    """Return text that does not begin with white space, and whether the file has ended without any."""
    while not text:
        chunk = file.read(_CHUNK)
        if not chunk:
            return "", True
        text = chunk.lstrip()
    return text, False


def _item(decoder: json.JSONDecoder, file: TextIO, text: str) -> tuple[Any, str]:
    """Return the first JSON value of a text, and what follows; reads on while it is incomplete."""
    size = _CHUNK
    while True:
        try:
            item, end = decoder.raw_decode(text)
            if end < len(text):  # a number at the end may go on
                return item, text[end:]
        except json.JSONDecodeError as error:
            complaint = str(error)
        else:
            complaint = "the list is not complete"
        chunk = file.read(size)
        if not chunk:
            raise ValueError(complaint)
        text += chunk
        size *= 2
