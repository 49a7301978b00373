"""Read files once to check and count their documents, and again whenever the documents are needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from coe_native.corpus.corpora import StoredDocuments
from coe_native.corpus.digests import CorpusDigest
from coe_native.corpus.documents import Document
from coe_native.corpus.long_content import LongText, LongTokens
from coe_native.corpus.readers.decoding import Found
from coe_native.corpus.readers.records import Columns
from coe_native.files.regular import unchanged_since_now

MOST_KEPT = 1 << 24
"""Bytes of documents up to which they stay in memory, approximately."""

_BYTES_BESIDE = 300
"""Memory of a document beside its content."""

_BYTES_OF_TOKEN = 36
"""Memory of a token id as a Python number in a tuple."""

Reader: TypeAlias = Callable[[Path, Columns, Counter[str]], Iterator[Found]]
"""Yields what is in a file. Counts the columns of its records, and why it is skipped."""


class FileReadings:
    """Files that are read several times, and must not change in between."""

    def __init__(self, files: Sequence[Path], reader: Reader) -> None:
        self._files = files
        self._reader = reader
        self._checks: dict[Path, Callable[[], None]] = {}

    def found(self, columns: Columns, skipped: Counter[str]) -> Iterator[Found]:
        """Yield what is in the files.

        Raises:
            InputError: A file has changed since it was read first.
        """
        is_again = bool(self._checks)
        for path in self._files:
            if not is_again:
                self._checks[path] = unchanged_since_now(path)
            self._checks[path]()
            yield from self._reader(path, columns, skipped)
            if is_again:
                self._checks[path]()


class Readout:
    """What the first reading of a corpus finds. Documents stay in memory while they are few."""

    def __init__(self) -> None:
        self.count = 0
        self._size = 0
        self._digest = CorpusDigest()
        self._kept: list[Document] | None = []
        self._n_bytes = 0

    def add(self, document: Document) -> None:
        """Add the next document."""
        self.count += 1
        self._size += document.size
        self._digest.add(document)
        self._n_bytes += _memory_of(document)
        if self._n_bytes > MOST_KEPT:
            self._kept = None
        if self._kept is not None:
            self._kept.append(document)

    def documents(self, again: Callable[[], Iterator[Document]]) -> Collection[Document]:
        """Return the documents that were added.

        Args:
            again: Reads them again.
        """
        if self._kept is not None:
            return tuple(self._kept)
        return StoredDocuments(again, self.count, self._size, self._digest.hex())


def _memory_of(document: Document) -> int:
    content = document.content
    if isinstance(content, LongText | LongTokens):
        return _BYTES_BESIDE
    is_tokens = isinstance(content, tuple) and isinstance(content[0], int)
    return _BYTES_BESIDE + (_BYTES_OF_TOKEN * len(content) if is_tokens else document.size)
