"""JSON files: a list of records, records line by line, or one object that has a list of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from coe_native.corpus.readers.decoding import NotTextError, decoded
from coe_native.corpus.readers.json_lines import parsed, record_of, records_of_lines
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import KNOWN_COLUMNS, FoundRecord
from coe_native.errors import InputError

_LISTS = ("data", "rows", "train", "examples", "instances")
"""Columns in which an object of a whole file holds its records."""

_CHUNK = 1 << 16


def json_file(path: Path, encoding: str | None = None) -> Iterator[FoundRecord]:
    """Yield each record."""
    with open_corpus_file(path) as file:
        start = file.read(_CHUNK)
    with open_corpus_file(path) as file:
        if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _records_of_list(file, path, encoding)
        elif _is_whole(start.partition(b"\n")[0]):
            yield from records_of_lines(file, path, encoding)
        else:
            yield from _records_of_object(file, path, encoding)


def _is_whole(line: bytes) -> bool:
    """Return whether a line is a JSON object, so that each line is one."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _records_of_object(file: BinaryIO, path: Path, encoding: str | None) -> Iterator[FoundRecord]:
    try:
        value = parsed(decoded(file.read(), str(path), encoding), str(path))
    except InputError as error:
        yield error
        return
    listed = None
    if isinstance(value, dict) and not any(name in value for name in KNOWN_COLUMNS):
        listed = next((value[name] for name in _LISTS if isinstance(value.get(name), list)), None)
    if listed is None:
        yield record_of(value, str(path))
    else:
        yield from _records(listed, path)


def _records_of_list(file: BinaryIO, path: Path, encoding: str | None) -> Iterator[FoundRecord]:
    text = io.TextIOWrapper(file, encoding or "utf-8-sig")
    try:
        yield from _records(_items(text), path)
    except UnicodeDecodeError as error:
        yield NotTextError(f"{path}: is not {error.encoding} text")
    except (ValueError, RecursionError) as error:
        yield InputError(f"{path}: is not JSON ({error})")
    finally:
        text.detach()


def _records(values: Iterable[Any], path: Path) -> Iterator[FoundRecord]:
    for number, value in enumerate(values, 1):
        yield record_of(value, f"{path}[{number}]")


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
