"""The memory of `profile` by the size of the corpus, on the demo's model.

    python -m benchmarks.corpus_memory DIRECTORY

Each corpus is made of paragraphs of the demo's texts: one text file, and one .jsonl with a record for each dozen
of paragraphs. A run is stopped when the whole corpus has been read and tokenised. DIRECTORY needs 2.2 GB.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import click

import coe_native as coe
from coe_native.profiling.run import Progress
from coe_native.recipes import demo

PARAGRAPHS = 12
"""Paragraphs of a document."""


class _EnoughError(Exception):
    """All of the corpus has been tokenised."""


def write(directory: Path, megabytes: int) -> list[Path]:
    """Write corpora of a size, unless they exist."""
    texts = (str(document.content) for kind in demo.KINDS for document in demo.corpus(kind, "profile").documents)
    paragraphs = [paragraph for text in texts for paragraph in text.split("\n\n")]
    text, lines = (directory / f"{megabytes}MB.{suffix}" for suffix in ("txt", "jsonl"))
    if not lines.exists():
        drawn = random.Random(0)
        size = 0
        with text.open("w", encoding="utf-8") as as_text, lines.open("w", encoding="utf-8") as as_lines:
            while size < megabytes * 1_000_000:
                document = "\n\n".join(drawn.choices(paragraphs, k=PARAGRAPHS)) + "\n"
                size += as_text.write(document)
                as_lines.write(json.dumps({"text": document}) + "\n")
    return [text, lines]


def measure(path: Path) -> None:
    """Profile until everything has been tokenised, and print the tokens, the tokens run and the peak of memory."""
    last: list[Progress] = []

    def stop(progress: Progress) -> None:
        last[:] = [progress]
        if progress.is_exact:
            raise _EnoughError

    with coe.Model(demo.MODEL, n_sequences=16, n_threads=1) as model, contextlib.suppress(_EnoughError):
        coe.profile_corpora(model, [coe.read_corpus(path)], stats="contribution", progress=stop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{path.name:<12} {last[0].total:>12,} tokens, stopped after {last[0].tokens:>9,}  {peak:>6.0f} MiB")


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--megabytes", type=int, multiple=True, default=(1, 100, 1000), show_default=True)
@click.option("--of", "path", type=click.Path(path_type=Path), help="Measure one corpus in this process.")
def main(directory: Path, megabytes: tuple[int, ...], path: Path | None) -> None:
    if path is not None:
        measure(path)
        return
    for size in megabytes:
        for corpus in write(directory, size):
            command = [sys.executable, "-m", "benchmarks.corpus_memory", str(directory), "--of", str(corpus)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
