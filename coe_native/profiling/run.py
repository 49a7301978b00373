"""Run corpora through a watched model: documents in, RoutingProfile out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe_native.corpus.batching import Batch, batches
from coe_native.corpus.bundles import WHOLE, Shard, bundles
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.in_memory import Given, corpus_of
from coe_native.errors import InputError
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.options import BATCH, BATCH_ON_GPU
from coe_native.masks.stability import Stability
from coe_native.model.imatrix_file import Imatrix
from coe_native.profiling.checkpoint import Checkpoint, Position
from coe_native.profiling.cutter import Cutter, Window
from coe_native.profiling.imatrix import InputWatcher
from coe_native.profiling.tally import Tally
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.scores import needs_outputs
from coe_native.routing.stats import DEFAULT_STATS, MIN_TOKENS, Stats, parse_stats

DOCUMENTS_AT_ONCE = 16
"""Windows that may share a batch. More would cost recurrent models memory for each."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        tokens: Tokens done.
        total: Tokens in all.
        seconds: Time since the first batch.
        is_exact: Whether all text has been tokenised; until then, `total` is an estimate.
    """

    tokens: int
    total: int
    seconds: float
    is_exact: bool = True


def profile(
    model: str | Path | LoadedModel,
    documents: Corpus | Iterable[Given],
    *,
    n_ctx: int = 512,
    n_batch: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    shard: Shard = WHOLE,
    stats: str = DEFAULT_STATS,
) -> RoutingProfile:
    """Profile a model over documents.

    Each document is cut into windows of at most `n_ctx` tokens. Every window starts at position 0, with BOS if the
    model expects it.

    Args:
        model: A GGUF file, or a loaded model, which keeps its own options.
        documents: A corpus, or texts, token ids and conversations: lists of messages with ``role`` and
            ``content``.
        n_ctx: Tokens of the longest window.
        n_batch: Tokens computed at once; None: 512, and 2048 on a GPU that has the memory.
        n_threads: CPU threads; None: all cores.
        n_gpu_layers: Layers on the GPU; negative: all.
        shard: The part of the text to profile: see `profile_corpora`.
        stats: What to count: one of STATS.

    Raises:
        InputError: The model, the documents or an option cannot be used.
        CoeError: llama.cpp fails.
    """
    corpora = [documents if isinstance(documents, Corpus) else corpus_of(documents)]
    if isinstance(model, LoadedModel):
        return profile_corpora(model, corpora, shard=shard, stats=stats)
    with LoadedModel(
        model,
        n_ctx=n_ctx,
        n_batch=n_batch or BATCH,
        n_batch_on_gpu=BATCH_ON_GPU if n_batch is None else 0,
        n_sequences=DOCUMENTS_AT_ONCE,
        n_threads=n_threads,
        n_gpu_layers=n_gpu_layers,
    ) as loaded:
        return profile_corpora(loaded, corpora, shard=shard, stats=stats)


def profile_corpora(
    model: LoadedModel,
    corpora: Sequence[Corpus],
    *,
    shard: Shard = WHOLE,
    stats: str = DEFAULT_STATS,
    checkpoint: Checkpoint | None = None,
    until: Stability | None = None,
    skip_bad: Callable[[str], None] | None = None,
    inputs: InputWatcher | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> RoutingProfile:
    """Profile a loaded model over corpora. A live mask stays in force.

    Args:
        model: The model.
        corpora: The text.
        shard: The part of the text to profile: some of the documents, and parts of each long one. The merged
            profiles of all shards equal that of the whole, to the last bit on one kind of machine.
        stats: What to count: one of STATS. ``routing`` leaves out the activation norms, which the default method
            scores by and which take a few per cent of the time.
        checkpoint: Where to save the progress. An interrupted run continues from there, and ends with the profile
            that it would have had. Any exception leaves a checkpoint behind, KeyboardInterrupt included.
        until: Run documents in random order (the same each time), and stop when this finds the mask stable. It
            tells afterwards whether the mask was.
        skip_bad: Called, in another thread, with the reason for each document that cannot be tokenised and is left
            out; None: such a document is an error.
        inputs: Sums the inputs of all matrices in the same run, for an importance matrix. Checkpoints do not hold
            these sums.
        progress: Called after each batch.

    Raises:
        InputError: There are no tokens (a shard of little text may have none), a document cannot be tokenised,
            or an option or the checkpoint cannot be used.
        CoeError: llama.cpp fails, or the model's file changes during the run.
    """
    counted = parse_stats(stats)
    check_options(shard, counted, until)
    tally = Tally(model, corpora, shard, counted)
    start = Position() if checkpoint is None else tally.resume(checkpoint, until)
    cutter = Cutter(
        model,
        lambda: bundles(corpora, shard, shuffled=until is not None),
        first=start.bundle,
        size=sum(corpus.size for corpus in corpora) // shard.count,
        skip_bad=skip_bad,
    )
    with _watching(model, counted, inputs), _saving_on_error(checkpoint, tally, start, until):
        tally.note(start)
        with contextlib.closing(_steps(model, cutter, start, checkpoint)) as steps:
            _run(model, steps, tally, cutter, checkpoint, until, progress)
    total = tally.profile()
    if total.n_tokens == 0 and shard.count == 1:
        raise InputError("the corpus has no tokens; give files with text in them")
    if inputs is not None:
        inputs.describe(model, total)
    model.moe.check_unchanged()
    return total


def compute_imatrix(
    model: LoadedModel,
    documents: Corpus | Iterable[Given],
    *,
    min_tokens: int = MIN_TOKENS,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Imatrix:
    """Return the importance matrix of documents: what llama-imatrix computes for the same tokens.

    If a mask is live, it is that of the specialist: only the kept experts, in the specialist's order.

    Args:
        model: The model.
        documents: A corpus, or texts, token ids and conversations, as for `profile`.
        min_tokens: An expert that has seen fewer gets the mean of its layer; 0: none does.
        progress: Called after each batch.

    Raises:
        InputError: There are no tokens, or a document cannot be tokenised.
        CoeError: llama.cpp fails, or the model's file changes during the run.
    """
    inputs = InputWatcher(min_tokens=min_tokens)
    corpus = documents if isinstance(documents, Corpus) else corpus_of(documents)
    profile_corpora(model, [corpus], stats=Stats.ROUTING.value, inputs=inputs, progress=progress)
    return inputs.imatrix


def check_options(shard: Shard, stats: Stats, until: Stability | None) -> None:
    """Check that options go together.

    Raises:
        InputError: They do not.
    """
    if until is not None and until.method and needs_outputs(until.method) and stats is not Stats.CONTRIBUTION:
        raise InputError(f"{until.method} scores by activation norms: count them too (--stats contribution)")
    if until is not None and shard.count > 1:
        raise InputError(
            "a shard cannot stop when the mask is stable (--until-stable): it is all of its documents"
        )


@dataclass(frozen=True)
class _Step:
    """One batch to run, its position, and the windows that begin in it."""

    position: Position
    begun: Sequence[Window]
    batch: Batch


def _steps(
    model: LoadedModel, cutter: Cutter, start: Position, checkpoint: Checkpoint | None
) -> Generator[_Step, None, None]:
    """Yield the batches from `start` on.

    Args:
        model: Tells how large batches are.
        cutter: Cuts the bundles, from the first one that is to be run.
        start: Where to begin.
        checkpoint: Where `start` comes from.

    Raises:
        InputError: `start` is neither a batch of the run nor the end of a bundle.
    """
    position = Position(start.bundle)
    with contextlib.closing(cutter.batches()) as cut:
        for bundle, windows in cut:
            if bundle != position.bundle:
                _check_reached(position, start, checkpoint)
                position = Position(bundle)
            for batch in batches((window.tokens for window in windows), model.n_batch, model.n_sequences):
                if position < start:
                    cutter.skip(batch)
                else:
                    yield _Step(position, windows if batch.n_begun else (), batch)
                position = Position(bundle, position.batch + 1)
    _check_reached(position, start, checkpoint)
    if checkpoint is not None and start > Position(cutter.n_bundles):
        raise checkpoint.past_the_end()


def _check_reached(position: Position, start: Position, checkpoint: Checkpoint | None) -> None:
    """Check that the bundle of `start`, which ends at `position`, has a batch there."""
    if checkpoint is not None and position.bundle == start.bundle and 0 < start.batch >= position.batch:
        raise checkpoint.past_the_end()


def _run(
    model: LoadedModel,
    steps: Iterable[_Step],
    tally: Tally,
    cutter: Cutter,
    checkpoint: Checkpoint | None,
    until: Stability | None,
    progress: Callable[[Progress], None],
) -> None:
    """Run all batches, or as many as it takes until the mask is stable."""
    started, n_tokens = time.monotonic(), 0
    for step in steps:
        if step.begun:
            tally.note(step.position)
            if until is not None and _is_stable(until, tally):
                return
            if checkpoint is not None and n_tokens > 0:
                checkpoint.offer(step.position, tally.profile, until)
        model.decode(step.batch)
        tally.add(step.begun)
        n_tokens += len(step.batch.tokens)
        cutter.check()
        progress(Progress(n_tokens, cutter.n_tokens, time.monotonic() - started, cutter.has_seen_all))
    tally.note(Position(cutter.n_bundles))


def _is_stable(until: Stability, tally: Tally) -> bool:
    if not until.due(tally.n_tokens):
        return False
    until.look(tally.profile())
    return until.stable


@contextlib.contextmanager
def _watching(model: LoadedModel, stats: Stats, inputs: InputWatcher | None) -> Iterator[None]:
    model.watch_routers(outputs=stats is Stats.CONTRIBUTION, inputs=inputs is not None)
    try:
        yield
        if inputs is not None:
            inputs.take(model)
    finally:
        model.unwatch_routers()


@contextlib.contextmanager
def _saving_on_error(
    checkpoint: Checkpoint | None, tally: Tally, start: Position, until: Stability | None
) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if checkpoint is not None and tally.position > start:
            checkpoint.save(tally.position, tally.profile(), until)
        raise
