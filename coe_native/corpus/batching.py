"""Turn documents into tokens, tokens into windows, and windows into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.documents import Document, Message
from coe_native.corpus.long_content import LONG, LongText, LongTokens
from coe_native.errors import InputError

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """The part of a model that turns documents into tokens."""

    n_vocab: int

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Return the tokens of a text."""
        ...

    def tokenize_long(self, pieces: Iterable[str], *, parse_special: bool = False) -> Iterator[Tokens]:
        """Yield the tokens of a text that is read in pieces, part by part."""
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
    return np.concatenate(list(token_parts(document, model)))


def token_parts(document: Document, model: Tokenizer) -> Iterator[Tokens]:
    """Yield a document's tokens in parts, of which a long document has many.

    Raises:
        InputError: As `tokenize`.
    """
    content = document.content
    try:
        if isinstance(content, LongText) or (isinstance(content, str) and len(content) >= LONG):
            pieces = content if isinstance(content, LongText) else [content]
            yield from model.tokenize_long(pieces, parse_special=document.parse_special)
            return
        if isinstance(content, str):
            yield model.tokenize(content, parse_special=document.parse_special)
            return
        if not isinstance(content, LongTokens) and content and isinstance(content[0], Message):
            yield model.tokenize(model.render_chat(content, document.tools), parse_special=True)
            return
    except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
        raise InputError(f"{document.place}: holds half of a surrogate pair, which is not valid text") from error
    except InputError as error:
        told = str(error)
        raise InputError(told if told.startswith(document.place) else f"{document.place}: {told}") from error
    if not isinstance(content, LongTokens):
        # Compared as Python numbers: an id of 2**40 must not wrap around to a valid one.
        _check_ids(min(content), max(content), document, model)  # type: ignore[type-var, arg-type]
        yield np.array(content, dtype=np.int32)
        return
    for ids in content:
        _check_ids(int(ids.min()), int(ids.max()), document, model)
    for ids in content:
        yield ids.astype(np.int32)


def _check_ids(least: int, greatest: int, document: Document, model: Tokenizer) -> None:
    if least < 0 or greatest >= model.n_vocab:
        raise InputError(f"{document.place}: has a token id outside the vocabulary of {model.n_vocab}")


def windows(parts: Iterable[Tokens], n_ctx: int, bos: int | None = None) -> Iterator[Tokens]:
    """Cut a document into windows. Each starts at position 0, and with BOS if the document does.

    Args:
        parts: The document's tokens, in parts.
        n_ctx: Tokens of the longest window.
        bos: The BOS token, or None if the model does not expect one.

    Yields:
        Each window, int32 [n_tokens]. All but the last have `n_ctx` tokens.
    """
    head: Tokens | None = None
    rest = np.empty(0, np.int32)
    n_cut = 0
    for part in filter(len, parts):
        rest = np.concatenate([rest, part])
        if head is None:
            head = part[:1] if bos is not None and n_ctx >= 2 and part[0] == bos else part[:0]
            rest = rest[len(head) :]
        body = n_ctx - len(head)
        full = len(rest) // body * body
        for start in range(0, full, body):
            yield np.concatenate([head, rest[start : start + body]])
        n_cut += full
        rest = rest[full:]
    if head is not None and (len(rest) or n_cut == 0):
        yield np.concatenate([head, rest])


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


class _HasLength(Protocol):
    def __len__(self) -> int: ...


Window = TypeVar("Window", bound=_HasLength)


def packed(windows: Iterable[Window], n_ctx: int, n_batch: int, n_sequences: int) -> Iterator[list[Window]]:
    """Pack windows so that batches are well filled, and yield those of each batch.

    The longest come first, each in the first batch that has room for it (first-fit decreasing: Johnson,
    1973).

    Args:
        windows: The windows.
        n_ctx: Tokens of the longest window.
        n_batch: Most tokens in a batch.
        n_sequences: Most windows in a batch.

    Yields:
        Windows that fit in one batch, or one that is longer than a batch.
    """
    full: list[Window] = []
    short: list[Window] = []
    for window in windows:
        (full if len(window) == n_ctx else short).append(window)
    short.sort(key=len, reverse=True)
    each = min(max(n_batch // n_ctx, 1), n_sequences)
    for start in range(0, len(full), each):
        yield _filled(full[start : start + each], short, n_batch, n_sequences)
    while short:
        yield _filled([], short, n_batch, n_sequences)


def _filled(batch: list[Window], short: list[Window], n_batch: int, n_sequences: int) -> list[Window]:
    """Move the longest windows that fit in a batch from `short`, which is sorted, to it, and return it."""
    room = n_batch - sum(min(len(window), n_batch) for window in batch)
    left: list[Window] = []
    for at, window in enumerate(short):
        if room == 0 or len(batch) == n_sequences:
            left += short[at:]
            break
        length = min(len(window), n_batch)  # a longer one fills batches of its own
        if length <= room:
            batch.append(window)
            room -= length
        else:
            left.append(window)
    short[:] = left
    return batch


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
