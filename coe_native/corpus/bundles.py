"""Bundles: documents that are run together, and the shards into which a run is divided."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from coe_native.corpus.corpora import Corpus, StoredDocuments
from coe_native.corpus.documents import Document
from coe_native.errors import InputError

MOST_SHARDS = 10_000

BUNDLE_SIZE = 2**17
"""Minimum size of a bundle in characters: about 64 batches of 512 tokens, of which the last is not full."""

SHUFFLED_BUNDLE_SIZE = 2**14
"""The same for documents in random order. Smaller, because within a bundle documents are sorted by length."""

LONG_DOCUMENT = 2**20
"""Characters of a document that is divided among shards."""

PART_TOKENS = 2**17
"""Tokens of a part of such a document: 256 windows of 512 tokens, of which the last batch is not full."""

MOST_HELD = 2**24
"""Characters of stored documents that are in memory while they are run in random order, approximately."""

_Numbered: TypeAlias = tuple[int, Document]
"""A document with the index of its corpus."""


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of a run's documents.

    Raises:
        InputError: `index` is not from 1 to `count`, or `count` is above MOST_SHARDS.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            raise InputError(
                f"there is no shard {self.index}/{self.count}; they go from 1/N to N/N, with N up to {MOST_SHARDS}"
            )


WHOLE = Shard()


@dataclass(frozen=True)
class Bundle:
    """Documents that are run together.

    A batch holds tokens of one bundle only, so the results of a bundle do not depend on other bundles, to the
    last bit. The same is true of the parts of a long bundle.

    Attributes:
        documents: The documents, each with the index of its corpus.
        shard: Which of its parts are run.
    """

    documents: tuple[_Numbered, ...]
    shard: Shard = WHOLE

    @property
    def size(self) -> int:
        """Return the approximate length of what is run of it, in characters."""
        return sum(document.size for _, document in self.documents) // self.shard.count

    @property
    def is_long(self) -> bool:
        """Return whether it is run in parts of PART_TOKENS tokens, because it has a long document."""
        return any(document.size >= LONG_DOCUMENT for _, document in self.documents)


def bundles(corpora: Sequence[Corpus], shard: Shard = WHOLE, *, shuffled: bool = False) -> Iterator[Bundle]:
    """Yield the bundles of one shard of all documents.

    A bundle ends as soon as it has BUNDLE_SIZE characters. Bundles are dealt to the shards in turn. Of a long one,
    every shard gets some parts, which are dealt in turn from the shard on that would have had it.

    Args:
        corpora: The documents, in order.
        shard: The part of the run.
        shuffled: Shuffle the documents first. The order is the same every time.
    """
    documents = _shuffled(corpora) if shuffled else _in_order(corpora)
    made = _bundled(documents, SHUFFLED_BUNDLE_SIZE if shuffled else BUNDLE_SIZE)
    for number, bundle in enumerate(made):
        turn = (shard.index - 1 - number) % shard.count
        if bundle.is_long:
            yield replace(bundle, shard=Shard(turn + 1, shard.count))
        elif turn == 0:
            yield bundle


def _bundled(documents: Iterable[_Numbered], enough: int) -> Iterator[Bundle]:
    waiting: list[_Numbered] = []
    size = 0
    for index, document in documents:
        waiting.append((index, document))
        size += document.size
        if size >= enough:
            yield Bundle(tuple(waiting))
            waiting, size = [], 0
    if waiting:
        yield Bundle(tuple(waiting))


def _in_order(corpora: Sequence[Corpus]) -> Iterator[_Numbered]:
    return ((index, document) for index, corpus in enumerate(corpora) for document in corpus.documents)


def _shuffled(corpora: Sequence[Corpus]) -> Iterator[_Numbered]:
    """Yield all documents in random order.

    Stored documents are read several times: each time, those that come next are held in memory.
    """
    n_documents = sum(len(corpus.documents) for corpus in corpora)
    order = array("q", range(n_documents))
    random.Random(0).shuffle(order)
    place = np.empty(n_documents, np.int64)
    place[np.asarray(order)] = np.arange(n_documents)
    n_held = n_documents
    if any(isinstance(corpus.documents, StoredDocuments) for corpus in corpora):
        n_held = MOST_HELD * n_documents // max(sum(corpus.size for corpus in corpora), 1) + 1
    for first in range(0, n_documents, n_held):
        held = {
            int(place[number]): document
            for number, document in enumerate(_in_order(corpora))
            if first <= place[number] < first + n_held
        }
        yield from (held.pop(at) for at in sorted(held))
