"""Texts and token ids that are too long to hold in memory: they are read from their file each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

LONG = 1 << 22
"""Bytes of a text, and token ids, from which a document is read in pieces."""

PIECE = 1 << 20
"""Bytes, or token ids, of a piece that is read."""


class LongText:
    """A long text, as the pieces of which it consists.

    Attributes:
        n_characters: Its length.
        n_bytes: The length of its UTF-8.
    """

    def __init__(self, pieces: Callable[[], Iterator[str]]) -> None:
        """Read the text once, to measure it.

        Args:
            pieces: Reads the text from its beginning, independently of other readings. May raise InputError, also
                if the text has changed.
        """
        self._pieces = pieces
        self.n_characters = self.n_bytes = 0
        for piece in pieces():
            self.n_characters += len(piece)
            self.n_bytes += len(piece.encode("utf-8", "surrogatepass"))

    def __len__(self) -> int:
        return self.n_characters

    def __iter__(self) -> Iterator[str]:
        return self._pieces()


class LongTokens:
    """Many token ids, as the arrays of which they consist."""

    def __init__(self, length: int, pieces: Callable[[], Iterator[NDArray[Any]]]) -> None:
        """Read nothing yet.

        Args:
            length: The number of ids.
            pieces: Reads the ids from the first on, as arrays of integers [n]. May raise InputError.
        """
        self._length = length
        self._pieces = pieces

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return self._pieces()
