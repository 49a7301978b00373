"""Corpora: documents with a name, in memory or read from their files whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from coe_native.corpus.digests import digest_of, old_digest_of
from coe_native.corpus.documents import Document


@dataclass(frozen=True)
class StoredDocuments(Collection[Document]):
    """Documents that are read from their files each time, because they take too much memory.

    Attributes:
        read: Reads the documents from the first on. Raises InputError if a file has changed.
        count: Their number.
        size: Their approximate length in characters.
        sha256: Their digest.
    """

    read: Callable[[], Iterator[Document]]
    count: int
    size: int
    sha256: str

    def __iter__(self) -> Iterator[Document]:
        return self.read()

    def __len__(self) -> int:
        return self.count

    def __contains__(self, document: object) -> bool:
        return any(document == one for one in self)


@dataclass(frozen=True)
class Corpus:
    """Named documents.

    Attributes:
        name: What messages and profiles call it; of a file, its path.
        documents: The documents, in order.
        skipped: Reasons why files of a directory were not read, each with the number of files.
        columns_read: Columns of structured files that were read.
        columns_ignored: Other columns, with the share of the text that they hold.
        bad: One line for each document that was left out because it could not be read.
    """

    name: str
    documents: Collection[Document]
    skipped: tuple[tuple[str, int], ...] = ()
    bad: tuple[str, ...] = ()
    columns_read: tuple[str, ...] = ()
    columns_ignored: tuple[tuple[str, float], ...] = ()

    @property
    def n_skipped(self) -> int:
        """Return the number of files of a directory that were not read."""
        return sum(number for _, number in self.skipped)

    @property
    def size(self) -> int:
        """Return the approximate length of all documents in characters."""
        documents = self.documents
        return documents.size if isinstance(documents, StoredDocuments) else sum(doc.size for doc in documents)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 digest (hex) of the documents' contents: see docs/formats.md."""
        documents = self.documents
        return documents.sha256 if isinstance(documents, StoredDocuments) else digest_of(documents)

    @property
    def old_sha256(self) -> str:
        """Return the digest that version 0.1.0 computed, to recognise its checkpoints."""
        return old_digest_of(self.documents)
