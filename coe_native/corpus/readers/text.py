"""Text: a file or standard input is one document."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from coe_native.corpus.long_content import LONG, LongText
from coe_native.corpus.readers.decoding import Found, NotTextError, decoded, decoded_pieces, found
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.corpus.readers.records import KNOWN_COLUMNS
from coe_native.files.regular import check_no_pointer, unchanged_since_now

_STANDARD_INPUT = "standard input"

_LOOKED_AT = 4096
"""First bytes of a file in which binary formats have a NUL."""

_BINARY_KINDS = {
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
    b"ARROW1": "an Arrow file; give it a name that ends in .arrow",
    b"\x93NUMPY": "a NumPy array; give it a name that ends in .npy",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"%PDF-": "a PDF; extract its text first",
    b"GGUF": "a GGUF file, not text",
    b"SQLite format 3": "an SQLite database; export its text first",
}
"""Files that are not text, by their first bytes, and what to do with them. They have NULs, unlike text."""

_Opened = contextlib.AbstractContextManager[BinaryIO]


def read_text(path: Path, encoding: str | None = None) -> Iterator[Found]:
    """Yield a file's text as one document."""
    check = unchanged_since_now(path)
    yield _text(str(path), lambda: open_corpus_file(path), encoding, check)


def read_standard_input(encoding: str | None = None) -> Iterator[Found]:
    """Yield the text of standard input as one document. A long one is kept in a temporary file."""
    start = sys.stdin.buffer.read(LONG)
    check_no_pointer(start, _STANDARD_INPUT)
    if len(start) < LONG:
        yield _text(_STANDARD_INPUT, lambda: contextlib.nullcontext(io.BytesIO(start)), encoding)
        return
    kept = tempfile.TemporaryFile(prefix="coe-native-")  # noqa: SIM115
    for piece in itertools.chain([start], iter(lambda: sys.stdin.buffer.read(LONG), b"")):
        kept.write(piece)
    kept.flush()

    def opened() -> _Opened:
        return contextlib.nullcontext(cast(BinaryIO, _FromTheStart(kept)))

    weakref.finalize(opened, kept.close)
    yield _text(_STANDARD_INPUT, opened, encoding)


class _FromTheStart(io.RawIOBase):
    """Reads an open file from its beginning, independently of others that read it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._file.fileno(), len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _begins_with_records(start: bytes) -> bool:
    """Return whether the first lines of a text are JSON objects with columns of text."""
    lines = [line for line in start[: 1 << 20].split(b"\n")[:4] if line.strip()][:3]
    try:
        records = [json.loads(line) for line in lines if line.lstrip(b"\xef\xbb\xbf ").startswith(b"{")]
    except (ValueError, RecursionError):
        return False
    return 0 < len(records) == len(lines) and all(set(record) & set(KNOWN_COLUMNS) for record in records)


def _text(
    place: str, opened: Callable[[], _Opened], encoding: str | None, check: Callable[[], None] = lambda: None
) -> Found:
    with opened() as file:
        start = file.read(LONG)
    if b"\0" in start[:_LOOKED_AT]:
        kind = next((kind for magic, kind in _BINARY_KINDS.items() if start.startswith(magic)), None)
        if kind is not None:
            return NotTextError(f"{place}: is {kind}")
    if _begins_with_records(start):
        return NotTextError(f"{place}: holds JSON records; give it a name that ends in .jsonl")
    if len(start) < LONG:
        return found(place, lambda: decoded(start, place, encoding))

    def pieces() -> Iterator[str]:
        check()
        with opened() as file:
            yield from decoded_pieces(file, place, encoding)
        check()

    return found(place, lambda: LongText(pieces))
