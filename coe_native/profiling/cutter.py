"""Cut documents into windows of tokens, in a thread beside the one that runs the model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coe_native.corpus.batching import Batch, Tokens, packing_order, tokenize, windows
from coe_native.corpus.bundles import Bundle
from coe_native.corpus.documents import Document
from coe_native.errors import InputError
from coe_native.llama.loaded_model import LoadedModel


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


class Cutter:
    """Cuts bundles into windows, in an order that fills batches.

    All bundles are cut as soon as possible, so that a bad document at the end of the corpus is found early. The
    tokenizer only reads the model, so it can run beside a decode.
    """

    def __init__(
        self, model: LoadedModel, bundles: Sequence[Bundle], skip_bad: Callable[[str], None] | None
    ) -> None:
        """Cut nothing yet.

        Args:
            model: The model, whose tokenizer and context size are used.
            bundles: The bundles.
            skip_bad: Called, in another thread, with the reason for each document that is left out; None: a
                document that cannot be tokenised is an error.
        """
        self._model = model
        self._bundles = bundles
        self._skip_bad = skip_bad
        self._size = sum(bundle.size for bundle in bundles)
        self._size_cut = 0
        self._tokens_cut = 0
        self._tokens_skipped = 0
        self._error: Exception | None = None

    def windows(self) -> Generator[list[Window], None, None]:
        """Yield the windows of each bundle."""
        thread = ThreadPoolExecutor(1)
        try:
            yield from thread.map(self._cut, self._bundles)
        finally:
            thread.shutdown(cancel_futures=True)

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
        return round(self._tokens_cut * self._size / max(self._size_cut, 1)) - self._tokens_skipped

    def _cut(self, bundle: Bundle) -> list[Window]:
        try:
            cut = [window for index, document in bundle.documents for window in self._windows_of(index, document)]
        except Exception as error:
            self._error = error
            raise
        lengths = [len(window.tokens) for window in cut]
        self._tokens_cut += sum(lengths)
        self._size_cut += bundle.size
        return [cut[i] for i in packing_order(lengths, self._model.n_batch, self._model.n_sequences)]

    def _windows_of(self, corpus: int, document: Document) -> list[Window]:
        try:
            tokens = tokenize(document, self._model.text)
        except InputError as error:
            if self._skip_bad is None:
                raise
            self._skip_bad(str(error))
            return []
        of_document = windows(tokens, self._model.n_ctx, self._model.text.bos_token)
        return [Window(part, corpus, begins=number == 0) for number, part in enumerate(of_document)]
