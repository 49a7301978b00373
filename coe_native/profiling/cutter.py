"""Cut documents into windows of tokens, in a thread beside the one that runs the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from coe_native.corpus.batching import Batch, Tokens, packed, token_parts, windows
from coe_native.corpus.bundles import Bundle
from coe_native.corpus.documents import Document
from coe_native.corpus.long_content import LongText, LongTokens
from coe_native.errors import InputError
from coe_native.llama.loaded_model import LoadedModel

MOST_AHEAD = 1 << 22
"""Tokens that are cut before they are run."""


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
        self._looked_from: int | None = None
        self._has_seen_all = False
        self._size_seen = 0
        self._tokens_seen = 0
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
                    self._ahead -= sum(map(len, batch))
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
    def n_tokens(self) -> int:
        """Return the number of tokens to run, estimated until all text has been tokenised."""
        total = self._tokens_seen
        if not self._has_seen_all:
            total = round(total * max(self._size / max(self._size_seen, 1), 1))
        return total - self._tokens_skipped

    def _work(self) -> None:
        try:
            looking: Iterator[None] | None = None
            for bundle, batch in self._cut():
                with self._changed:
                    self._waiting.append((bundle, batch))
                    self._ahead += sum(map(len, batch))
                    self._changed.notify_all()
                while self._ahead >= MOST_AHEAD and not self._is_closed:
                    looking = looking or self._look_ahead(bundle + 1)
                    if next(looking, self) is self:
                        with self._changed:
                            self._changed.wait_for(lambda: self._ahead < MOST_AHEAD or self._is_closed)
                if self._is_closed:
                    return
            self._has_seen_all = True
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
            count = self._looked_from is None or number < self._looked_from
            for batch in packed(
                self._reader(bundle, count), self._model.n_ctx, self._model.n_batch, self._model.n_sequences
            ):
                yield number, batch

    def _look_ahead(self, start: int) -> Iterator[None]:
        """Tokenise all bundles from `start` on. Yields often, so that cutting can go on in between."""
        self._looked_from = start
        for number, bundle in enumerate(self._bundles()):
            if number >= start:
                for _, document in bundle.documents:
                    for _ in self._parts(document, count=True):
                        yield
        self._has_seen_all = True

    def _reader(self, bundle: Bundle, count: bool) -> Callable[[], Iterable[Window]]:
        """Return what reads the windows of a bundle, which are held in memory unless a document is long."""

        def read() -> Iterator[Window]:
            nonlocal count
            counting, count = count, False
            for index, document in bundle.documents:
                parts = self._parts(document, counting)
                of_document = windows(parts, self._model.n_ctx, self._model.text.bos_token)
                yield from (Window(part, index, begins=at == 0) for at, part in enumerate(of_document))

        if any(isinstance(document.content, LongText | LongTokens) for _, document in bundle.documents):
            return read
        held = list(read())
        return lambda: held

    def _parts(self, document: Document, count: bool) -> Iterator[Tokens]:
        """Yield the tokens of a document, and count them if they are seen for the first time."""
        n_tokens = 0
        try:
            for part in token_parts(document, self._model.text):
                n_tokens += len(part)
                if count:
                    self._tokens_seen += len(part)
                yield part
        except InputError as error:
            if self._skip_bad is None:
                raise
            if count:
                self._skip_bad(str(error))
        if count:
            self._size_seen += document.size
