"""Find documents that nearly equal others, by the sequences of words that they share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.documents import Document, text_of
from coe_native.corpus.long_content import LongText, LongTokens
from coe_native.errors import InputError

SHINGLE = 5
"""Words in a shingle. More would let one changed word change most shingles; fewer would make shingles common."""

MOST_COMPARED = 1 << 15
"""Documents that are compared with each other. Each takes about 6 KB in the index."""

MOST_SHINGLES = 1 << 23
"""Shingles of all documents that are compared with each other. Each takes 8 bytes."""

Shingles = NDArray[np.uint64]


def shingles(text: str) -> Shingles:
    """Return hashes of all runs of SHINGLE words of a text, in lower case, each once: uint64 [n], ascending.

    A shorter text is one run. In a text with few words, each character counts as a word.
    """
    words = re.findall(r"\w+", text.lower())
    if len(text) > 12 * len(words):  # symbols, or a language without spaces between words
        words = [character for character in text.lower() if not character.isspace()]
    runs = {" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}
    hashes = (hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(b"".join(hashes), np.uint64))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Return the Jaccard index of two texts: the shingles that they share, by the shingles of either."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


class NearDuplicates:
    """Compares documents, which come one by one, with earlier ones.

    Candidates are found by MinHash (Broder, 1997), which misses few, and are then checked exactly. Documents that
    come after MOST_COMPARED documents or MOST_SHINGLES shingles are not compared, nor are very long ones.

    Attributes:
        n_compared: The number of documents that were compared.

    Raises:
        InputError: The threshold is out of range.
    """

    def __init__(self, threshold: float) -> None:
        """Begin without documents.

        Args:
            threshold: The Jaccard index of their shingles from which documents count as near duplicates. With 1,
                only documents with the same words do.
        """
        import datasketch

        if not 0 < threshold <= 1:
            raise InputError(f"the threshold of near duplicates must be above 0 and at most 1, not {threshold}")
        self._threshold = threshold
        # A little lower, because the index only estimates how similar documents are.
        self._index = datasketch.MinHashLSH(threshold=min(max(threshold - 0.1, 0.05), 0.95), num_perm=128)
        self._kept: dict[int, Shingles] = {}
        self._n_shingles = 0
        self.n_compared = 0

    def twin_of(self, number: int, document: Document) -> int | None:
        """Compare the next document with the earlier ones.

        Args:
            number: What it is called.
            document: The document.

        Returns:
            An earlier document that it duplicates, and that is not a duplicate itself; None if there is none.
        """
        import datasketch

        if len(self._kept) >= MOST_COMPARED or isinstance(document.content, LongText | LongTokens):
            return None
        own = shingles(text_of(document))
        if self._n_shingles + len(own) > MOST_SHINGLES:
            return None
        self.n_compared += 1
        sketch = datasketch.MinHash(num_perm=128, seed=1)
        sketch.update_batch([shingle.tobytes() for shingle in own])
        twins = (i for i in sorted(self._index.query(sketch)) if jaccard(self._kept[i], own) >= self._threshold)
        twin = next(twins, None)
        if twin is None:
            self._kept[number] = own
            self._n_shingles += len(own)
            self._index.insert(number, sketch)
        return twin


def near_duplicates(documents: Iterable[Document], threshold: float) -> list[int | None]:
    """Return for each document the index of the earlier one that it nearly equals, or None.

    Args:
        documents: The documents.
        threshold: As for NearDuplicates.

    Raises:
        InputError: The threshold is out of range.
    """
    seen = NearDuplicates(threshold)
    return [seen.twin_of(number, document) for number, document in enumerate(documents)]
