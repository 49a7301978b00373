"""Text: a file or standard input is one document."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from coe_native.corpus.long_content import LONG, LongText
from coe_native.corpus.readers.decoding import Found, NotTextError, decoded, decoded_pieces, found
from coe_native.corpus.readers.opening import open_corpus_file

_STANDARD_INPUT = "standard input"

_OTHER_KINDS = {
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
    b"ARROW1": "an Arrow file; give it a name that ends in .arrow",
    b"\x93NUMPY": "a NumPy array; give it a name that ends in .npy",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"%PDF-": "a PDF; extract its text first",
    b"GGUF": "a GGUF file, not text",
    b"SQLite format 3\0": "an SQLite database; export its text first",
}
"""Files that are not text, by their first bytes, and what to do with them."""

_Opened = contextlib.AbstractContextManager[BinaryIO]


def read_text(path: Path, encoding: str | None = None) -> Iterator[Found]:
    """Yield a file's text as one document."""
    yield _text(str(path), lambda: open_corpus_file(path), encoding)


def read_standard_input(encoding: str | None = None) -> Iterator[Found]:
    """Yield the text of standard input as one document. A long one is kept in a temporary file."""
    start = sys.stdin.buffer.read(LONG)
    kept = io.BytesIO(start) if len(start) < LONG else _kept(start, sys.stdin.buffer)

    @contextlib.contextmanager
    def again() -> Iterator[BinaryIO]:
        kept.seek(0)
        yield kept

    weakref.finalize(again, kept.close)
    yield _text(_STANDARD_INPUT, again, encoding)


def _kept(start: bytes, rest: BinaryIO) -> BinaryIO:
    file = tempfile.TemporaryFile(prefix="coe-native-")  # noqa: SIM115
    file.write(start)
    while piece := rest.read(LONG):
        file.write(piece)
    return file


def _text(place: str, opened: Callable[[], _Opened], encoding: str | None) -> Found:
    with opened() as file:
        start = file.read(LONG)
    kind = next((kind for magic, kind in _OTHER_KINDS.items() if start.startswith(magic)), None)
    if kind is not None:
        return NotTextError(f"{place}: is {kind}")
    if len(start) < LONG:
        return found(place, lambda: decoded(start, place, encoding))

    def pieces() -> Iterator[str]:
        with opened() as file:
            yield from decoded_pieces(file, place, encoding)

    return found(place, lambda: LongText(place, pieces))
