"""Runs corpora through a watched model: documents in, RoutingProfile out."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from coe_native.corpus.batching import Batch, Tokens, batches, packing_order, tokenize, windows
from coe_native.corpus.bundles import WHOLE, Bundle, Shard, bundles
from coe_native.corpus.documents import Corpus, corpus_of
from coe_native.errors import InputError
from coe_native.llama.loaded_model import Model, RouterCounts
from coe_native.masks.stability import Stability
from coe_native.profiling.checkpoint import Checkpoint, Position
from coe_native.routing.profile import CorpusRecord, RoutingProfile
from coe_native.routing.scores import needs_outputs
from coe_native.routing.stats import STATS

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
    stats: str = "routing",
) -> RoutingProfile:
    """The routing profile of a model file (or loaded Model) over documents: texts, or sequences of token ids.

    Each document is cut into windows of at most `n_ctx` tokens, every one from position 0, and with BOS where
    that is the model's habit. A loaded Model keeps its own options. `shard` and `stats`: see
    `profile_corpora`. Raises InputError for bad input, CoeError where llama.cpp fails.
    """
    if isinstance(model, Model):
        return profile_corpora(model, [corpus_of(documents)], shard=shard, stats=stats)
    options = {"n_ctx": n_ctx, "n_batch": n_batch, "n_threads": n_threads, "n_gpu_layers": n_gpu_layers}
    with Model(model, n_sequences=DOCUMENTS_AT_ONCE, **options) as loaded:  # type: ignore[arg-type]
        return profile_corpora(loaded, [corpus_of(documents)], shard=shard, stats=stats)


def profile_corpora(
    model: Model,
    corpora: Sequence[Corpus],
    *,
    shard: Shard = WHOLE,
    stats: str = "routing",
    checkpoint: Checkpoint | None = None,
    until: Stability | None = None,
    skip_bad: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> RoutingProfile:
    """The routing profile of a loaded model over corpora, or over one shard of their documents: merged, the
    profiles of all shards equal that of the whole, to the last bit on one kind of machine. A live mask stays in
    force.

    `stats`: one of STATS. The methods that score by what experts contribute need ``contribution``: it counts
    OutputNorms too, for a few per cent of the time.

    With `until`, documents run in random order (the same each time), and no more of them than it takes until the
    mask has stopped changing, which is for `until` to say afterwards.

    With a `checkpoint`, a run that was interrupted goes on, and ends with the profile that it would have had; an
    exception leaves a checkpoint behind, KeyboardInterrupt too. `skip_bad`: documents that the model can't
    tokenise are left out, and it is told of each, in another thread. `progress` is called after each batch.
    Raises InputError where there are no tokens at all; a shard of few documents may have none. Raises CoeError
    where the model's file has been changed meanwhile.
    """
    check_options(shard, stats, until)
    work = bundles(corpora, shard, shuffled=until is not None)
    counted = _Counted(model, corpora, shard, stats, len(work))
    start = counted.go_on(checkpoint, until) if checkpoint is not None else Position()
    cutter = _Cutter(model, work[start.bundle :], skip_bad)
    model.watch_routers(outputs=stats == "contribution")
    try:
        counted.note(start)
        with contextlib.closing(cutter.ahead()) as cut:
            started, ran = time.monotonic(), 0
            for position, begun, batch in _batches(model, cut, start.bundle):
                if position < start:
                    cutter.skip(batch)
                    continue
                if checkpoint is not None and ran == 0 and start.batch > 0 and position != start:
                    raise checkpoint.beyond_the_end()
                if begun and _pause(counted, position, checkpoint if position > start else None, until):
                    break
                model.decode(batch)
                counted.begun(begun)
                ran += len(batch.tokens)
                progress(Progress(ran, cutter.total(), time.monotonic() - started))
            else:
                if checkpoint is not None and ran == 0 and start.batch > 0:
                    raise checkpoint.beyond_the_end()
                counted.note(Position(len(work)))
    except BaseException:
        if checkpoint is not None and counted.position > start:
            checkpoint.save(counted.position, counted.profile(), until)
        raise
    finally:
        model.unwatch_routers()
    profile = counted.profile()
    if profile.n_tokens == 0 and shard.count == 1:
        raise InputError("the corpus has no tokens; give files with text in them")
    model.moe.check_unchanged()
    return profile


def check_options(shard: Shard, stats: str, until: Stability | None) -> None:
    """Raises InputError for what cannot go together."""
    if stats not in STATS:
        raise InputError(f"there are no statistics {stats!r}; choose one of {', '.join(STATS)}")
    if until is not None and needs_outputs(until.method) and stats != "contribution":
        raise InputError(f"{until.method} scores by what experts put out: count that too (--stats contribution)")
    if until is not None and shard.count > 1:
        raise InputError("a shard is all of its documents: it cannot end when the mask is stable (--until-stable)")


def _pause(counted: _Counted, position: Position, checkpoint: Checkpoint | None, until: Stability | None) -> bool:
    """Before a batch: whether the run is at its end, because the mask is stable; else it is a time for a
    checkpoint."""
    counted.note(position)
    if until is not None and until.due(counted.n_tokens):
        until.look(counted.profile())
        if until.stable:
            return True
    if checkpoint is not None:
        checkpoint.offer(position, counted.profile, until)
    return False


@dataclass(frozen=True)
class _Window:
    """Tokens to be run from position 0 on, of one corpus; whether a document begins with them."""

    tokens: Tokens
    corpus: int
    begins: bool


def _batches(
    model: Model, cut: Iterable[Sequence[_Window]], first: int
) -> Iterator[tuple[Position, Sequence[_Window], Batch]]:
    """The batches of all bundles, the first of which has the number `first`, each with its position and the
    windows that begin in it."""
    for bundle, parts in enumerate(cut, first):
        at = 0
        of_bundle = batches((part.tokens for part in parts), model.n_batch, model.n_sequences)
        for number, batch in enumerate(of_bundle):
            yield Position(bundle, number), parts[at : at + batch.n_begun], batch
            at += batch.n_begun


class _Counted:
    """What a run has counted, as of its last `note`: whatever happens between two of them, counts and position are
    those of one moment."""

    def __init__(self, model: Model, corpora: Sequence[Corpus], shard: Shard, stats: str, n_bundles: int) -> None:
        self._model = model
        self._shard = shard
        self._stats = stats
        self._n_bundles = n_bundles
        self._records = [
            CorpusRecord(corpus.name, 0, 0, corpus.sha256, (shard.index,), shard.count) for corpus in corpora
        ]
        self._run = hashlib.sha256("".join(record.sha256 for record in self._records).encode()).hexdigest()
        if shard.count > 1:
            self._records = [replace(record, run=self._run) for record in self._records]
        self._before: RoutingProfile | None = None
        self._noted: tuple[Position, RouterCounts, tuple[CorpusRecord, ...]]

    def go_on(self, checkpoint: Checkpoint, until: Stability | None) -> Position:
        """Takes over what a checkpoint has, and says where to begin."""
        model = self._model
        position, self._before = checkpoint.begin(
            {
                "model": model.moe.header_digest,
                "mask": model.mask.digest if model.mask is not None else "none",
                "corpus": self._run,
                "shard": f"{self._shard.index}/{self._shard.count}",
                "stats": self._stats,
                "ctx": model.n_ctx,
                "batch": model.n_batch,
                "sequences": model.n_sequences,
                "until-stable": "no" if until is None else until.run,
            },
            until,
        )
        if self._before is not None:
            if len(self._before.corpora) != len(self._records) or position.bundle > self._n_bundles:
                raise checkpoint.beyond_the_end()
            self._records = list(self._before.corpora)
        return position

    def begun(self, parts: Sequence[_Window]) -> None:
        """Windows that have been run, or whose first part has."""
        for part in parts:
            record = self._records[part.corpus]
            self._records[part.corpus] = replace(
                record, documents=record.documents + part.begins, tokens=record.tokens + len(part.tokens)
            )

    def note(self, position: Position) -> None:
        self._noted = position, self._model.router_counts(), tuple(self._records)

    @property
    def position(self) -> Position:
        return self._noted[0]

    @property
    def n_tokens(self) -> int:
        """Of everything that was run before the last note."""
        return sum(record.tokens for record in self._noted[2])

    def profile(self) -> RoutingProfile:
        """The profile of everything that was run before the last note."""
        _, counts, records = self._noted
        moe = self._model.moe
        before = 0 if self._before is None else self._before.n_tokens
        now = RoutingProfile(
            moe.architecture,
            moe.name,
            moe.fingerprint,
            tuple(moe.blocks),
            sum(record.tokens for record in records) - before,
            counts.histograms,
            counts.weight_sum,
            (),
            moe.router_shape.n_groups,
            moe.router_shape.n_groups_used,
            weight_sum_rest=counts.weight_sum_rest,
            outputs=counts.outputs,
        )
        return replace(now if self._before is None else self._before + now, corpora=records)


class _Cutter:
    """Cuts bundles into windows of tokens, in an order that fills batches; all of them as soon as it can, in a
    thread beside the model's: the tokenizer only reads the model."""

    def __init__(self, model: Model, work: Sequence[Bundle], skip_bad: Callable[[str], None] | None) -> None:
        self._model = model
        self._skip_bad = skip_bad
        self._work = work
        self._size = sum(bundle.size for bundle in work)
        self._size_cut = 0
        self._tokens_cut = 0
        self._tokens_skipped = 0
        self._error: Exception | None = None

    def skip(self, batch: Batch) -> None:
        """Leaves a batch out of the total: it was run before."""
        self._tokens_skipped += len(batch.tokens)

    def total(self) -> int:
        """Tokens of all bundles that are to be run, as far as is known. Raises what is wrong with a document that
        is still to come: nobody should wait hours to be told."""
        if self._error is not None:
            raise self._error
        return round(self._tokens_cut * self._size / max(self._size_cut, 1)) - self._tokens_skipped

    def ahead(self) -> Generator[list[_Window], None, None]:
        """The windows of each bundle."""
        thread = ThreadPoolExecutor(1)
        try:
            yield from thread.map(self._cut, self._work)
        finally:
            thread.shutdown(cancel_futures=True)

    def _cut(self, bundle: Bundle) -> list[_Window]:
        try:
            parts = []
            for index, document in bundle.documents:
                try:
                    tokens = tokenize(document, self._model)
                except InputError as error:
                    if self._skip_bad is None:
                        raise
                    self._skip_bad(str(error))
                    continue
                of_document = windows(tokens, self._model.n_ctx, self._model.bos_token)
                parts += [_Window(part, index, begins=number == 0) for number, part in enumerate(of_document)]
            lengths = [len(part.tokens) for part in parts]
            self._tokens_cut += sum(lengths)
            self._size_cut += bundle.size
        except Exception as error:
            self._error = error
            raise
        return [parts[i] for i in packing_order(lengths, self._model.n_batch, self._model.n_sequences)]
