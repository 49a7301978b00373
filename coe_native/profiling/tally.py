"""What a run has counted so far, and where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from coe_native.corpus.bundles import PART_TOKENS, Shard, bundles
from coe_native.corpus.corpora import Corpus
from coe_native.llama.loaded_model import LoadedModel, RouterCounts
from coe_native.masks.stability import Stability
from coe_native.profiling.checkpoint import Checkpoint, Position, RunKey
from coe_native.profiling.cutter import Window
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.profile import RoutingProfile
from coe_native.routing.stats import Stats


class Tally:
    """The counts of a run as of its last `note`, which belong to one position whatever happens after it."""

    def __init__(self, model: LoadedModel, corpora: Sequence[Corpus], shard: Shard, stats: Stats) -> None:
        self._model = model
        self._corpora = corpora
        self._shard = shard
        self._stats = stats
        digests = [corpus.sha256 for corpus in corpora]
        self._digest = _digest_of(digests)
        self._records = [
            CorpusRecord(
                name=corpus.name,
                documents=0,
                tokens=0,
                sha256=digest,
                shards=(shard.index,),
                n_shards=shard.count,
                run="" if shard.count == 1 else _digest_of([*digests, f"parts of {PART_TOKENS} tokens"]),
                columns=corpus.columns_read,
                date=model.text.printed_date,
            )
            for corpus, digest in zip(corpora, digests, strict=True)
        ]
        self._before: RoutingProfile | None = None
        self._noted: tuple[Position, RouterCounts, tuple[CorpusRecord, ...]] | None = None

    def resume(self, checkpoint: Checkpoint, until: Stability | None) -> Position:
        """Take over what a checkpoint has counted, and return where to begin.

        Raises:
            InputError: The checkpoint belongs to another run, or is damaged.
        """
        position, self._before = checkpoint.begin(
            self._run(until, self._digest),
            lambda: self._old_run(until),
            until,
        )
        if self._before is not None:
            if len(self._before.corpora) != len(self._records):
                raise checkpoint.past_the_end()
            # The digests are this version's, though a checkpoint of version 0.1.0 has others.
            self._records = [
                replace(record, documents=counted.documents, tokens=counted.tokens)
                for counted, record in zip(self._before.corpora, self._records, strict=True)
            ]
        return position

    def _run(self, until: Stability | None, digest: str) -> RunKey:
        model = self._model
        return {
            "model": model.moe.header_digest,
            "mask": model.mask.digest if model.mask is not None else "none",
            "corpus": digest,
            "shard": f"{self._shard.index}/{self._shard.count}",
            "stats": self._stats.value,
            "ctx": model.n_ctx,
            "batch": model.n_batch,
            "sequences": model.n_sequences,
            "until-stable": "no" if until is None else until.recorded,
            "part-size": PART_TOKENS,
            **({"date": model.text.printed_date} if model.text.printed_date else {}),
        }

    def _old_run(self, until: Stability | None) -> RunKey:
        """Return what version 0.1.0 recorded. It did not divide long documents."""
        run = self._run(until, _digest_of([corpus.old_sha256 for corpus in self._corpora]))
        if any(bundle.is_long for bundle in bundles(self._corpora, self._shard, shuffled=until is not None)):
            return run
        return {name: value for name, value in run.items() if name != "part-size"}

    def add(self, begun: Sequence[Window]) -> None:
        """Count windows that have been run, or whose first part has."""
        for window in begun:
            record = self._records[window.corpus]
            self._records[window.corpus] = replace(
                record, documents=record.documents + window.begins, tokens=record.tokens + len(window.tokens)
            )

    def note(self, position: Position) -> None:
        """Take the counts of now, which belong to this position."""
        self._noted = position, self._model.router_counts(), tuple(self._records)

    @property
    def position(self) -> Position:
        """Return the position of the last note."""
        return Position() if self._noted is None else self._noted[0]

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens at the last note."""
        return 0 if self._noted is None else sum(record.tokens for record in self._noted[2])

    def profile(self) -> RoutingProfile:
        """Return the profile of everything that was run before the last note."""
        assert self._noted is not None
        _, counts, records = self._noted
        header = self._model.moe
        before = 0 if self._before is None else self._before.n_tokens
        now = RoutingProfile(
            architecture=header.architecture,
            model_name=header.name,
            fingerprint=header.fingerprint if self._before is None else self._before.fingerprint,
            layers=tuple(header.blocks),
            n_tokens=sum(record.tokens for record in records) - before,
            histograms=counts.histograms,
            weight_sum=counts.weight_sum,
            n_groups=header.router_shape.n_groups,
            n_groups_used=header.router_shape.n_groups_used,
            weight_sum_rest=counts.weight_sum_rest,
            outputs=counts.outputs,
        )
        total = now if self._before is None else self._before + now
        return replace(total, corpora=records, fingerprint=header.fingerprint)


def _digest_of(digests: Sequence[str]) -> str:
    """Return the digest of what makes up a run: see docs/formats.md."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()
