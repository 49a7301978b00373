"""Runs corpora through a watched model: documents in, RoutingProfile out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe_native.corpus import Corpus, Tokens, batches, corpus_of, tokenize, windows
from coe_native.errors import InputError
from coe_native.routing_profile import CorpusRecord, RoutingProfile
from coe_native.runtime import Model

DOCUMENTS_AT_ONCE = 16
"""Windows that may share a batch; more would cost recurrent models memory for each."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: tokens done and in all, and seconds since its first batch."""

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
) -> RoutingProfile:
    """The routing profile of a model file (or loaded Model) over documents: texts, or sequences of token ids.

    Each document is cut into windows of at most `n_ctx` tokens, every one from position 0, and with BOS where
    that is the model's habit. A loaded Model
    keeps its own options. Raises InputError for bad input, CoeError where llama.cpp fails.
    """
    if isinstance(model, Model):
        return profile_corpora(model, [corpus_of(documents)])
    options = {"n_ctx": n_ctx, "n_batch": n_batch, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers}
    with Model(model, n_sequences=DOCUMENTS_AT_ONCE, **options) as loaded:  # type: ignore[arg-type]
        return profile_corpora(loaded, [corpus_of(documents)])


def profile_corpora(
    model: Model,
    corpora: Sequence[Corpus],
    *,
    progress: Callable[[Progress], None] = lambda _: None,
) -> RoutingProfile:
    """The routing profile of a loaded model over corpora. A live mask stays in force.

    `progress` is called after each batch. Raises InputError where there are no tokens.
    """
    parts: list[Tokens] = []
    records = []
    for corpus in corpora:
        of_corpus = [
            window
            for document in corpus.documents
            for window in windows(tokenize(document, model), model.n_ctx, model.bos_token)
        ]
        n_tokens = sum(map(len, of_corpus))
        records.append(CorpusRecord(corpus.name, len(corpus.documents), n_tokens, corpus.sha256))
        parts += of_corpus
    total = sum(record.tokens for record in records)
    if total == 0:
        raise InputError("the corpus has no tokens; give files with text in them")

    model.watch_routers()
    try:
        done, started = 0, time.monotonic()
        for batch in batches(parts, model.n_batch, model.n_sequences):
            model.decode(batch)
            done += len(batch.tokens)
            progress(Progress(done, total, time.monotonic() - started))
        histograms, weight_sum = model.router_counts()
    finally:
        model.unwatch_routers()
    return RoutingProfile(
        model.moe.architecture,
        model.moe.name,
        model.moe.fingerprint,
        tuple(model.moe.blocks),
        total,
        histograms,
        weight_sum,
        tuple(records),
        model.moe.router_shape.n_groups,
        model.moe.router_shape.n_groups_used,
    )
