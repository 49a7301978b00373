"""Text: a file or standard input is one document."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from coe_native.corpus.readers.decoding import Found, can_be_decoded, decoded, found
from coe_native.corpus.readers.opening import open_corpus_file

_STANDARD_INPUT = "standard input"


def read_text(path: Path, encoding: str | None = None) -> Iterator[Found]:
    """Yield a file's text as one document."""
    with open_corpus_file(path) as file:
        start = file.read(1 << 16)
        # A file of gigabytes that is not text need not be read to its end.
        rest = file.read() if can_be_decoded(start, encoding) else b""
        yield found(str(path), lambda: decoded(start + rest, str(path), encoding))


def read_standard_input(encoding: str | None = None) -> Iterator[Found]:
    """Yield the text of standard input as one document."""
    yield found(_STANDARD_INPUT, lambda: decoded(sys.stdin.buffer.read(), _STANDARD_INPUT, encoding))
