"""Runs corpora through a watched model: documents in, RoutingProfile out."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coe_native.corpus import (
    WHOLE,
    Bundle,
    Corpus,
    Shard,
    Tokens,
    batches,
    bundles,
    corpus_of,
    tokenize,
    windows,
)
from coe_native.errors import InputError
from coe_native.routing_profile import CorpusRecord, RoutingProfile
from coe_native.runtime import Model

DOCUMENTS_AT_ONCE = 16
"""Windows that may share a batch; more would cost recurrent models memory for each."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: tokens done and in all (estimated until all text has been tokenised), and seconds since
    its first batch."""

    tokens: int
    total: int
    seconds: float


def profile(
    model: str | Path | Model,
    documents: Iterable[str | Sequence[int]],
    *,
    n_ctx: int = 512,
    n_batch: int = 512,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    shard: Shard = WHOLE,
) -> RoutingProfile:
    """The routing profile of a model file (or loaded Model) over documents: texts, or sequences of token ids.

    Each document is cut into windows of at most `n_ctx` tokens, every one from position 0, and with BOS where
    that is the model's habit. A loaded Model keeps its own options. `shard`: see
    `profile_corpora`. Raises InputError for bad input, CoeError where llama.cpp fails.
    """
    if isinstance(model, Model):
        return profile_corpora(model, [corpus_of(documents)], shard=shard)
    options = {"n_ctx": n_ctx, "n_batch": n_batch, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers}
    with Model(model, n_sequences=DOCUMENTS_AT_ONCE, **options) as loaded:  # type: ignore[arg-type]
        return profile_corpora(loaded, [corpus_of(documents)], shard=shard)


def profile_corpora(
    model: Model,
    corpora: Sequence[Corpus],
    *,
    shard: Shard = WHOLE,
    progress: Callable[[Progress], None] = lambda _: None,
) -> RoutingProfile:
    """The routing profile of a loaded model over corpora, or over one shard of their documents: merged, the
    profiles of all shards equal that of the whole, to the last bit on one kind of machine. A live mask stays in
    force.

    `progress` is called after each batch. Raises InputError where there are no tokens at all; a shard of few
    documents may have none.
    """
    cutter = _Cutter(model, bundles(corpora, shard), len(corpora))
    digests = [corpus.sha256 for corpus in corpora]
    run = hashlib.sha256("".join(digests).encode()).hexdigest() if shard.count > 1 else ""
    model.watch_routers()
    try:
        with contextlib.closing(cutter.ahead()) as cut:
            done, started = 0, time.monotonic()
            for parts in cut:
                for batch in batches(parts, model.n_batch, model.n_sequences):
                    model.decode(batch)
                    done += len(batch.tokens)
                    progress(Progress(done, cutter.total(), time.monotonic() - started))
        histograms, weight_sum, weight_sum_rest = model.router_counts()
    finally:
        model.unwatch_routers()
    if done == 0 and shard.count == 1:
        raise InputError("the corpus has no tokens; give files with text in them")
    return RoutingProfile(
        model.moe.architecture,
        model.moe.name,
        model.moe.fingerprint,
        tuple(model.moe.blocks),
        done,
        histograms,
        weight_sum,
        tuple(
            CorpusRecord(corpus.name, documents, tokens, digest, (shard.index,), shard.count, run)
            for corpus, documents, tokens, digest in zip(
                corpora, cutter.documents, cutter.tokens, digests, strict=True
            )
        ),
        model.moe.router_shape.n_groups,
        model.moe.router_shape.n_groups_used,
        weight_sum_rest=weight_sum_rest,
    )


class _Cutter:
    """Cuts bundles into windows of tokens, all of them as soon as it can, in a thread beside the model's: the
    tokenizer only reads the model. `documents` and `tokens` count what it has cut, by corpus."""

    def __init__(self, model: Model, work: Sequence[Bundle], n_corpora: int) -> None:
        self._model = model
        self._work = work
        self._size = sum(bundle.size for bundle in work)
        self._size_cut = 0
        self._error: Exception | None = None
        self.documents = [0] * n_corpora
        self.tokens = [0] * n_corpora

    def total(self) -> int:
        """Tokens of all bundles, as far as is known. Raises what is wrong with a document that is still to come:
        nobody should wait hours to be told."""
        if self._error is not None:
            raise self._error
        return round(sum(self.tokens) * self._size / max(self._size_cut, 1))

    def ahead(self) -> Generator[list[Tokens], None, None]:
        """The windows of each bundle."""
        thread = ThreadPoolExecutor(1)
        try:
            yield from thread.map(self._cut, self._work)
        finally:
            thread.shutdown(cancel_futures=True)

    def _cut(self, bundle: Bundle) -> list[Tokens]:
        try:
            parts = []
            for index, document in bundle.documents:
                of_document = windows(tokenize(document, self._model), self._model.n_ctx, self._model.bos_token)
                self.documents[index] += 1
                for part in of_document:
                    self.tokens[index] += len(part)
                    parts.append(part)
            self._size_cut += bundle.size
        except Exception as error:
            self._error = error
            raise
        return parts
