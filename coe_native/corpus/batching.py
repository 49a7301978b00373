"""Turn documents into tokens, tokens into windows, and windows into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.documents import Document, Message
from coe_native.errors import InputError

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """The part of a model that turns documents into tokens."""

    n_vocab: int

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Return the tokens of a text."""
        ...

    def render_chat(self, messages: tuple[Message, ...], tools: str = "", *, reply: bool = False) -> str:
        """Return a conversation as text."""
        ...


def tokenize(document: Document, model: Tokenizer) -> Tokens:
    """Return a document's tokens, int32 [n_tokens], with BOS and EOS if the model expects them.

    Token ids are returned unchanged.

    Raises:
        InputError: The model cannot tokenise the document, or an id is outside the vocabulary.
    """
    content = document.content
    try:
        if isinstance(content, str):
            return model.tokenize(content, parse_special=document.parse_special)
        if content and isinstance(content[0], Message):
            return model.tokenize(model.render_chat(content, document.tools), parse_special=True)
    except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
        raise InputError(f"{document.place}: holds half of a surrogate pair, which is not valid text") from error
    except InputError as error:
        raise InputError(f"{document.place}: {error}") from error
    # Compared as Python numbers: an id of 2**40 must not wrap around to a valid one.
    if min(content) < 0 or max(content) >= model.n_vocab:  # type: ignore[type-var, operator]
        raise InputError(f"{document.place}: has a token id outside the vocabulary of {model.n_vocab}")
    return np.array(content, dtype=np.int32)


def windows(tokens: Tokens, n_ctx: int, bos: int | None = None) -> Iterator[Tokens]:
    """Cut a document into windows. Each starts at position 0, and with BOS if the document does.

    Args:
        tokens: The document's tokens.
        n_ctx: Tokens of the longest window.
        bos: The BOS token, or None if the model does not expect one.

    Yields:
        Each window, int32 [n_tokens].
    """
    if bos is None or n_ctx < 2 or len(tokens) == 0 or tokens[0] != bos:
        for start in range(0, len(tokens), n_ctx):
            yield tokens[start : start + n_ctx]
        return
    yield tokens[:n_ctx]
    for start in range(n_ctx, len(tokens), n_ctx - 1):
        yield np.concatenate([tokens[:1], tokens[start : start + n_ctx - 1]])


@dataclass(frozen=True)
class Batch:
    """The tokens that one decode runs.

    Attributes:
        tokens: The tokens, int32 [n_tokens].
        positions: Their positions in their windows, the same shape.
        sequences: Their sequences, the same shape.
        n_begun: Windows that begin in it; 0 if it continues the window of the batch before.
    """

    tokens: Tokens
    positions: Tokens
    sequences: Tokens
    n_begun: int


def batches(parts: Iterable[Tokens], n_batch: int, n_sequences: int) -> Iterator[Batch]:
    """Pack windows into batches, in order.

    A window longer than a batch is run alone, in several consecutive batches.

    Args:
        parts: The windows.
        n_batch: Most tokens in a batch.
        n_sequences: Most windows in a batch.

    Yields:
        The batches.
    """
    waiting: list[Tokens] = []
    for window in parts:
        if waiting and (sum(map(len, waiting)) + len(window) > n_batch or len(waiting) == n_sequences):
            yield _pack(waiting)
            waiting = []
        if len(window) > n_batch:
            yield from _chunks(window, n_batch)
        else:
            waiting.append(window)
    if waiting:
        yield _pack(waiting)


def packing_order(lengths: Sequence[int], n_batch: int, n_sequences: int) -> list[int]:
    """Return an order of windows in which `batches` fills its batches well, as indices.

    The longest come first, each in the first batch that has room for it (first-fit decreasing: Johnson,
    1973).

    Args:
        lengths: Tokens of each window.
        n_batch: Most tokens in a batch.
        n_sequences: Most windows in a batch.
    """
    packed: list[list[int]] = []
    room = np.zeros(len(lengths), np.int64)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = min(lengths[index], n_batch)  # a longer one fills batches of its own
        fits = np.flatnonzero(room[: len(packed)] >= length)
        if len(fits) == 0:
            packed.append([])
            room[len(packed) - 1] = n_batch
        at = int(fits[0]) if len(fits) else len(packed) - 1
        packed[at].append(index)
        room[at] = room[at] - length if len(packed[at]) < n_sequences else 0
    return [index for batch in packed for index in batch]


def _pack(parts: list[Tokens]) -> Batch:
    lengths = [len(part) for part in parts]
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    sequences = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)
    return Batch(tokens=np.concatenate(parts), positions=positions, sequences=sequences, n_begun=len(parts))


def _chunks(window: Tokens, n_batch: int) -> Iterator[Batch]:
    for start in range(0, len(window), n_batch):
        part = window[start : start + n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        yield Batch(
            tokens=part,
            positions=positions,
            sequences=np.zeros(len(part), np.int32),
            n_begun=int(start == 0),
        )
