"""JSON files: a list of records, records line by line, or one object that has a list of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from coe_native.corpus.readers.decoding import NotTextError, as_text, decoded, lines, not_text
from coe_native.corpus.readers.json_lines import NotRecordsError, parsed, record_of, records_of_lines
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import (
    CONVERSATIONS,
    KNOWN_COLUMNS,
    FoundRecord,
    Record,
    is_message,
    text_length,
)
from coe_native.errors import InputError

_MOST_BESIDE = 0.1
"""Most text that an object may have beside its list of records, as a share of theirs."""

_ALWAYS_BESIDE = 200
"""Characters that it may always have."""

_CHUNK = 1 << 16


def json_file(path: Path, encoding: str | None = None) -> Iterator[FoundRecord]:
    """Yield each record."""
    with open_corpus_file(path) as file:
        begins_list = _first_character(file, encoding) == "["
    if begins_list:
        with open_corpus_file(path) as file:
            yield from _records_of_list(file, path, encoding)
        return
    with open_corpus_file(path) as file:
        found = (line for line in lines(file, encoding) if line.strip(b"\xef\xbb\xbf \t\r\n"))
        first, second = next(found, b""), next(found, b"")
    with open_corpus_file(path) as file:
        if second and _is_whole(first):
            yield from records_of_lines(file, path, encoding)
        else:
            yield from _records_of_object(file, path, encoding)


def _first_character(file: BinaryIO, encoding: str | None) -> str:
    """Return the first character of a text that is not blank; empty if there is none or it cannot be decoded."""
    text = as_text(file, encoding)
    try:
        while chunk := text.read(_CHUNK):
            if stripped := chunk.lstrip("\ufeff \t\r\n"):
                return stripped[0]
    except UnicodeError:
        pass
    finally:
        text.detach()
    return ""


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
    rows = _rows_of_columns(value)
    if rows is not None:
        yield from _records(iter(rows), path)
        return
    lists = {}
    if isinstance(value, dict) and not any(_is_text_column(name, of_name) for name, of_name in value.items()):
        lists = {name: listed for name, listed in value.items() if _is_list_of_objects(listed)}
        others = sum(text_length(other) for name, other in value.items() if name not in lists)
        if others > max(_MOST_BESIDE * sum(map(text_length, lists.values())), _ALWAYS_BESIDE):
            lists = {}  # a record that has lists, and no list of records
    if len(lists) > 1:
        yield InputError(f"{path}: holds several lists of records ({', '.join(lists)}); save each as a file")
    elif lists:
        yield from _records(iter(*lists.values()), path)
    else:
        yield record_of(value, str(path))


def _is_text_column(name: str, value: Any) -> bool:
    """Return whether a value of an object makes it a record itself."""
    return name.lower() in KNOWN_COLUMNS and (isinstance(value, str) or name.lower() in CONVERSATIONS)


def _rows_of_columns(value: Any) -> list[Any] | None:
    """Return the rows of a table that is stored by columns, as pandas and datasets do; None: it is none."""
    if not isinstance(value, dict) or not any(name.lower() in KNOWN_COLUMNS for name in value):
        return None
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns) and len({tuple(column) for column in columns}) == 1:
        columns = [list(column.values()) for column in columns]
    elif not all(isinstance(column, list) and len(column) > 1 for column in columns):
        return None
    holds_messages = any(is_message(item) for column in columns for item in column)
    if holds_messages or len({len(column) for column in columns}) != 1:
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _records_of_list(file: BinaryIO, path: Path, encoding: str | None) -> Iterator[FoundRecord]:
    text = as_text(file, encoding)
    try:
        yield from _records(_items(text), path)
    except UnicodeError as error:
        yield NotTextError(f"{path}: {not_text(error)}")
    except (ValueError, RecursionError) as error:
        yield NotRecordsError(f"{path}: is not JSON ({error}); nothing after it is read")
    finally:
        text.detach()


def _records(values: Iterator[Any], path: Path) -> Iterator[FoundRecord]:
    for number, value in enumerate(values, 1):
        if number == 1 and is_message(value):  # a saved conversation
            yield Record(str(path), {"messages": [value, *values]})
            return
        yield record_of(value, f"{path}[{number}]")


_BLANKS = re.compile(r"[ \t\r\n]*")


def _items(file: TextIO) -> Iterator[Any]:
    """Yield the items of a JSON list, of which only some are in memory at a time.

    Raises:
        ValueError: It is not JSON.
    """
    buffer = _Buffer(file)
    buffer.take("[")
    if buffer.peek() != "]":
        yield buffer.value()
        while buffer.peek() == ",":
            buffer.take(",")
            yield buffer.value()
    if buffer.peek() != "]":
        raise ValueError("items of the list are not separated by commas" if buffer.peek() else _INCOMPLETE)
    buffer.take("]")
    if buffer.peek():
        raise ValueError("there is text after the list")


_INCOMPLETE = "the list is not complete"


class _Buffer:
    """The part of a text that has been read, and the position up to which it has been used."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not blank; empty: the text has ended."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None
            self._at = blanks.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(_CHUNK):
                return ""

    def take(self, character: str) -> None:
        """Use up the next character, which must be this one."""
        if self.peek() != character:
            raise ValueError(_INCOMPLETE)
        self._at += 1

    def value(self) -> Any:
        """Return the next JSON value. Reads on while it is incomplete, by twice as much each time."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._read(size):  # a number at the end may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                # What is wrong far from the end of what was read does not become right.
                is_cut = error.pos > len(self._text) - 64 or error.msg.startswith("Unterminated")
                if not is_cut or not self._read(size):
                    raise ValueError(str(error)) from error
            size *= 2

    def _read(self, size: int) -> bool:
        """Forget what has been used, and read more. Returns whether there was more."""
        chunk = self._file.read(size)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
