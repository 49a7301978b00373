"""Cut documents into windows of tokens, in a thread beside the one that runs the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace

from coe_native.corpus.batching import Batch, Tokens, packed, token_parts, windows
from coe_native.corpus.bundles import PART_TOKENS, Bundle
from coe_native.corpus.documents import Document
from coe_native.errors import InputError
from coe_native.llama.loaded_model import LoadedModel

MOST_AHEAD = 1 << 22
"""Tokens that are cut before they are run. Each window counts as WINDOW_COST more."""

WINDOW_COST = 70
"""The memory of a window beside its tokens, in tokens."""


@dataclass(frozen=True)
class Window:
    """Tokens to run from position 0 on.

    Attributes:
        tokens: int32 [n_tokens].
        corpus: Index of the corpus.
        begins: Whether a document begins with them.
    """

    tokens: Tokens
    corpus: int
    begins: bool

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class _Count:
    """What has been tokenised up to some place: whole documents.

    Attributes:
        tokens: Their tokens.
        size: Their approximate length in characters.
        is_all: Whether no documents are left.
    """

    tokens: int = 0
    size: int = 0
    is_all: bool = False


class Cutter:
    """Cuts bundles into windows, in an order that fills batches.

    Bundles are cut ahead, up to MOST_AHEAD tokens. What comes after them is tokenised once before it is cut, so
    that a bad document at the end of the corpus is found early. The tokenizer only reads the model, so it can run
    beside a decode.
    """

    def __init__(
        self,
        model: LoadedModel,
        bundles: Callable[[], Iterable[Bundle]],
        first: int,
        size: int,
        skip_bad: Callable[[str], None] | None,
    ) -> None:
        """Cut nothing yet.

        Args:
            model: The model, whose tokenizer and context size are used.
            bundles: Returns the bundles. It is called a second time to look ahead.
            first: The bundle to begin with, from 0.
            size: The approximate length of all bundles in characters.
            skip_bad: Called, in another thread, with the reason for each document that is left out; None: a
                document that cannot be tokenised is an error.
        """
        self.n_bundles = 0
        self._model = model
        self._bundles = bundles
        self._first = first
        self._size = size
        self._skip_bad = skip_bad
        self._left_out: set[str] = set()
        self._of_cut = _Count()
        self._of_earlier_bundles = _Count()
        self._of_look_ahead = _Count()
        self._tokens_skipped = 0
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, list[Window]]] = deque()
        self._ahead = 0
        self._has_ended = False
        self._is_closed = False

    def batches(self) -> Generator[tuple[int, list[Window]], None, None]:
        """Yield the windows of each batch with the index of their bundle. `n_bundles` is known at the end."""
        thread = threading.Thread(target=self._work, name="coe-native cutter", daemon=True)
        thread.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._has_ended)
                    if not self._waiting:
                        break
                    bundle, batch = self._waiting.popleft()
                    self._ahead -= _cost(batch)
                    self._changed.notify_all()
                yield bundle, batch
            self.check()
        finally:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
            thread.join()

    def check(self) -> None:
        """Raise the error of a document that could not be tokenised, even if its bundle is still to come."""
        if self._error is not None:
            raise self._error

    def skip(self, batch: Batch) -> None:
        """Leave a batch that an interrupted run has run out of the total."""
        self._tokens_skipped += len(batch.tokens)

    @property
    def has_seen_all(self) -> bool:
        """Return whether all text has been tokenised, so that `n_tokens` is exact."""
        return self._of_cut.is_all or self._of_look_ahead.is_all

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens to run, estimated until all text has been tokenised."""
        seen = max(self._of_cut, self._of_look_ahead, key=lambda count: (count.is_all, count.size))
        total = (
            seen.tokens if seen.is_all else round(self._size * (seen.tokens / seen.size if seen.size else 0.25))
        )
        return total - self._tokens_skipped

    def _work(self) -> None:
        try:
            looking: Iterator[None] | None = None
            for bundle, batch in self._cut():
                with self._changed:
                    self._waiting.append((bundle, batch))
                    self._ahead += _cost(batch)
                    self._changed.notify_all()
                while self._ahead >= MOST_AHEAD and not self._is_closed:
                    looking = looking or self._look_ahead(bundle)
                    if next(looking, self) is self:
                        with self._changed:
                            self._changed.wait_for(lambda: self._ahead < MOST_AHEAD or self._is_closed)
                if self._is_closed:
                    return
            self._of_cut.is_all = True
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _cut(self) -> Iterator[tuple[int, list[Window]]]:
        for number, bundle in enumerate(self._bundles()):
            self.n_bundles = number + 1
            if number < self._first:
                self._size -= bundle.size
                continue
            self._of_earlier_bundles = replace(self._of_cut)
            for part in self._parts(bundle, self._of_cut):
                if self._is_closed:
                    return
                for batch in packed(part, self._model.n_ctx, self._model.n_batch, self._model.n_sequences):
                    yield number, batch

    def _look_ahead(self, start: int) -> Iterator[None]:
        """Tokenise all bundles from `start` on. Yields often, so that cutting can go on in between."""
        count = self._of_look_ahead = replace(self._of_earlier_bundles)
        for number, bundle in enumerate(self._bundles()):
            if number >= start:
                for _ in self._parts(bundle, count):
                    yield
        count.is_all = True

    def _parts(self, bundle: Bundle, count: _Count) -> Iterator[list[Window]]:
        """Yield the windows of a bundle that are packed together: all, or those of each part of a long one.

        The parts that other shards run are empty. Adds to a count what has been cut, after each document.
        """
        part: list[Window] = []
        n_parts = length = 0
        for corpus, document in bundle.documents:
            n_tokens = 0
            for window in self._windows_of(corpus, document):
                if n_parts % bundle.shard.count == bundle.shard.index - 1:
                    part.append(window)
                    n_tokens += len(window)
                length += len(window)
                if bundle.is_long and length >= PART_TOKENS:
                    yield part
                    part, length, n_parts = [], 0, n_parts + 1
            count.tokens += n_tokens
            count.size += document.size // bundle.shard.count
        yield part

    def _windows_of(self, corpus: int, document: Document) -> Iterator[Window]:
        begins = True
        try:
            parts = token_parts(document, self._model.text)
            for tokens in windows(parts, self._model.n_ctx, self._model.text.bos_token):
                yield Window(tokens, corpus, begins)
                begins = False
        except InputError as error:
            if self._skip_bad is None or not begins:  # windows that have been run cannot be left out
                raise
            if document.place not in self._left_out:
                self._left_out.add(document.place)
                self._skip_bad(str(error))


def _cost(batch: list[Window]) -> int:
    return sum(map(len, batch)) + WINDOW_COST * len(batch)
