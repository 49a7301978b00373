"""Profiling beside llama.cpp's own prompt processing: same file, threads and ubatch, in alternating runs.

    python -m benchmarks.profile_speed MODEL --llama-bench PATH/TO/llama-bench

Prints tokens/s of both (median, least, most) and the median of the ratios run by run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

WINDOW = 512


def profile_speed(model: Path, tokens: Path, threads: int) -> float:
    """Tokens/s of `coe-native profile` over ready token ids, loading not counted (as llama-bench has it)."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(Path(sys.executable).with_name("coe-native"), "profile", model, "-c", tokens),
            *("-o", Path(directory) / "profile.gguf", "--threads", threads, "--json"),
        ]
        run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return float(json.loads(run.stdout)["tokens_per_second"])


def bench_speed(llama_bench: Path, model: Path, threads: int, repetitions: int) -> float:
    """Tokens/s of `llama-bench -p 512`, averaged over its own repetitions after its own warm-up."""
    command = [
        *(llama_bench, "-m", model, "-p", WINDOW, "-n", 0, "-ub", WINDOW, "-t", threads),
        *("-r", repetitions, "-o", "json"),
    ]
    run = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return float(json.loads(run.stdout)[0]["avg_ts"])


def summary(name: str, speeds: list[float]) -> str:
    return f"{name:<22} {statistics.median(speeds):8,.0f} tokens/s  ({min(speeds):,.0f} to {max(speeds):,.0f})"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--llama-bench", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--runs", default=5, show_default=True)
@click.option("--windows", default=40, show_default=True, help="Documents of 512 tokens in each run.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
def main(model: Path, llama_bench: Path, runs: int, windows: int, threads: int) -> None:
    """Compare `coe-native profile` with `llama-bench -p 512` on MODEL."""
    import coe_native as coe

    with coe.Model(model) as loaded:
        n_vocab = loaded.n_vocab
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as directory:
        tokens = Path(directory) / "tokens.npy"
        # Random ids, as llama-bench takes them.
        np.save(tokens, np.random.default_rng(0).integers(0, n_vocab, (windows, WINDOW)).astype(np.int32))
        for _ in range(runs):
            ours.append(profile_speed(model, tokens, threads))
            theirs.append(bench_speed(llama_bench, model, threads, windows))
    click.echo(f"{model.name}, {threads} threads, {runs} alternating runs of {windows} x {WINDOW} tokens")
    click.echo(summary("coe-native profile", ours))
    click.echo(summary("llama-bench -p 512", theirs))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    click.echo(
        f"ratio, median          {statistics.median(ratios):8.3f}  ({min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
