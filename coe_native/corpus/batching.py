"""Documents to tokens, tokens to windows, windows to the batches that a decode runs."""

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
    """What turning documents into tokens needs of a model."""

    n_vocab: int

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens: ...
    def render_chat(self, messages: tuple[Message, ...], *, reply: bool = False) -> str: ...


def tokenize(document: Document, model: Tokenizer) -> Tokens:
    """A document's tokens, BOS and EOS as the model's habit is; ready token ids are taken as they are.

    Raises InputError, naming the document, for ids outside the vocabulary and for what the model can't tokenise.
    """
    content = document.content
    try:
        if isinstance(content, str):
            return model.tokenize(content)
        if content and isinstance(content[0], Message):
            return model.tokenize(model.render_chat(content), parse_special=True)
    except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair
        raise InputError(f"{document.place}: holds half of a character, which is no text") from error
    except InputError as error:
        raise InputError(f"{document.place}: {error}") from error
    # Compared as Python numbers: an id of 2**40 must not wrap around to a valid one.
    if min(content) < 0 or max(content) >= model.n_vocab:  # type: ignore[type-var, operator]
        raise InputError(f"{document.place}: has a token id outside the vocabulary of {model.n_vocab}")
    return np.array(content, dtype=np.int32)


def windows(tokens: Tokens, n_ctx: int, bos: int | None = None) -> Iterator[Tokens]:
    """A document cut into windows of at most `n_ctx` tokens; each starts at position 0, and with `bos` where
    the document does."""
    if bos is None or n_ctx < 2 or len(tokens) == 0 or tokens[0] != bos:
        for start in range(0, len(tokens), n_ctx):
            yield tokens[start : start + n_ctx]
        return
    yield tokens[:n_ctx]
    for start in range(n_ctx, len(tokens), n_ctx - 1):
        yield np.concatenate([tokens[:1], tokens[start : start + n_ctx - 1]])


@dataclass(frozen=True)
class Batch:
    """What one decode runs: three int32 arrays of one length. `n_begun`: windows that begin in it; 0 where
    one goes on from the batch before."""

    tokens: Tokens
    positions: Tokens
    sequences: Tokens
    n_begun: int


def batches(parts: Iterable[Tokens], n_batch: int, n_sequences: int) -> Iterator[Batch]:
    """Packs windows, in order, into batches of at most `n_batch` tokens and `n_sequences` sequences.

    A window longer than a batch runs alone, in several batches that go on from each other.
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
    """The order of windows of these lengths in which `batches` fills its batches well: the longest first, each
    into the first batch that has room for it (first-fit decreasing: Johnson, 1973)."""
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
    return Batch(np.concatenate(parts), positions, sequences, len(parts))


def _chunks(window: Tokens, n_batch: int) -> Iterator[Batch]:
    for start in range(0, len(window), n_batch):
        part = window[start : start + n_batch]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        yield Batch(part, positions, np.zeros(len(part), np.int32), int(start == 0))
