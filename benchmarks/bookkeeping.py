"""What profiling costs beside the model: reading, hashing, tokenising, packing and counting tokens.

    python -m benchmarks.bookkeeping DIRECTORY --tokens 100000000

Two runs with the demo's model: one over a corpus of that many tokens, without decoding, and a complete one over a
short corpus. Both figures are processor time for each token, so that it does not matter that
text is tokenised beside the model.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from pathlib import Path

import click

import coe_native as coe
from coe_native.profiling.checkpoint import Checkpoint, Position
from coe_native.profiling.run import DOCUMENTS_AT_ONCE, Progress
from coe_native.recipes.demo import KINDS, MODEL, corpus

BYTES_PER_TOKEN = 3
MODEL_BYTES = 600_000
"""Of the corpus that the model really runs."""


def write_corpus(path: Path, n_bytes: int) -> None:
    """The demo's texts again and again; as one text if the name says so."""
    texts = itertools.cycle([str(doc.content) for kind in KINDS for doc in corpus(kind, "profile").documents])
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < n_bytes:
            text = next(texts)
            file.write(text + "\n" if path.suffix == ".txt" else json.dumps({"text": text}) + "\n")


def beside(model: coe.Model, path: Path) -> tuple[int, float, float]:
    """Tokens, and the processor and wall seconds of everything but decoding."""
    model.decode = lambda batch: None  # type: ignore[method-assign]
    last: list[Progress] = []

    def follow(progress: Progress) -> None:
        last[:] = [progress]

    started, cpu = time.monotonic(), time.process_time()
    # The profile at the end is refused, because the model has seen nothing.
    with contextlib.suppress(coe.InputError):
        coe.profile_corpora(model, [coe.read_corpus(path)], progress=follow)
    seconds = time.process_time() - cpu, time.monotonic() - started
    del model.decode
    return last[0].tokens, *seconds


def whole(model: coe.Model, path: Path) -> tuple[int, float, float]:
    """Tokens and processor seconds of a run, and the seconds that a checkpoint of it takes."""
    cpu = time.process_time()
    profile = coe.profile_corpora(model, [coe.read_corpus(path)])
    cpu = time.process_time() - cpu
    checkpoint = Checkpoint(path.with_suffix(".profile.gguf"), force=True)
    started = time.monotonic()
    checkpoint.save(Position(), profile)
    seconds = time.monotonic() - started
    checkpoint.remove()
    return profile.n_tokens, cpu, seconds


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--tokens", default=10_000_000, show_default=True, help="Tokens of the larger corpus, about.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
def main(directory: Path, tokens: int, threads: int) -> None:
    print("| corpus | tokens | beside the model | with the model | share | a checkpoint |")
    print("| --- | --- | --- | --- | --- | --- |")
    with coe.Model(MODEL, n_sequences=DOCUMENTS_AT_ONCE, n_threads=threads) as model:
        for suffix, what in ((".jsonl", "documents"), (".txt", "one text")):
            few, many = directory / f"few{suffix}", directory / f"many{suffix}"
            write_corpus(few, MODEL_BYTES)
            write_corpus(many, tokens * BYTES_PER_TOKEN)
            n_many, spent, wall = beside(model, many)
            n_few, spent_in_all, checkpoint = whole(model, few)
            of_token, in_all = spent / n_many, spent_in_all / n_few
            print(
                f"| {what} | {n_many:,} in {wall:.0f} s | {1e6 * of_token:.2f} µs | {1e6 * in_all:.1f} µs "
                f"| {of_token / in_all:.1%} | {1e3 * checkpoint:.0f} ms |",
                flush=True,
            )
            for path in (few, many):
                path.unlink()


if __name__ == "__main__":
    main()
