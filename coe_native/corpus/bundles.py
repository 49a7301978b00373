"""Bundles: documents that are run together, and the shards into which a run is divided."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from coe_native.corpus.documents import Corpus, Document
from coe_native.errors import InputError

MOST_SHARDS = 10_000

BUNDLE_SIZE = 2**17
"""Minimum size of a bundle in characters: about 64 batches of 512 tokens, of which the last is not full."""

SHUFFLED_BUNDLE_SIZE = 2**14
"""The same for documents in random order. Smaller, because within a bundle documents are sorted by length."""


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
    """Documents that are run together, each with the index of its corpus.

    A batch holds tokens of one bundle only, so the results of a bundle do not depend on other bundles, to the
    last bit.
    """

    documents: tuple[tuple[int, Document], ...]

    @property
    def size(self) -> int:
        """Return its approximate length in characters."""
        return sum(document.size for _, document in self.documents)


def bundles(corpora: Sequence[Corpus], shard: Shard = WHOLE, *, shuffled: bool = False) -> list[Bundle]:
    """Return the bundles of one shard of all documents.

    A bundle ends as soon as it has BUNDLE_SIZE characters. Bundles are dealt to the shards in turn.

    Args:
        corpora: The documents, in order.
        shard: The part of the run.
        shuffled: Shuffle the documents first. The order is the same every time.
    """
    documents = [(index, document) for index, corpus in enumerate(corpora) for document in corpus.documents]
    if shuffled:
        random.Random(0).shuffle(documents)
    enough = SHUFFLED_BUNDLE_SIZE if shuffled else BUNDLE_SIZE
    made: list[Bundle] = []
    waiting: list[tuple[int, Document]] = []
    size = 0
    for index, document in documents:
        waiting.append((index, document))
        size += document.size
        if size >= enough:
            made.append(Bundle(tuple(waiting)))
            waiting, size = [], 0
    if waiting:
        made.append(Bundle(tuple(waiting)))
    return made[shard.index - 1 :: shard.count]
