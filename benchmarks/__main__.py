"""All comparisons in one table.

    python -m benchmarks DIRECTORY --llama-cpp PATH/TO/llama.cpp/build/bin

DIRECTORY has or gets a 2.6 GB parent of Gemma 4's form with random weights and the demo's tokenizer, and needs
room for two copies of it. Without --llama-cpp there is nothing to compare profiling with but itself;
--transformers takes a model directory and the same model's F32 GGUF.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import click

import coe_native as coe
from benchmarks import generating, profiling, random_gemma4, side_by_side, starting, surgery
from benchmarks.side_by_side import Comparison

SHAPE = random_gemma4.Shape(n_embd=1024, n_ff=1056, n_ff_expert=352, n_layers=24, head_size=64)
DEMO = Path(coe.__file__).parent / "demo_data" / "demo-Q8_0.gguf"

EXISTING = click.Path(path_type=Path, exists=True)
PARTS = ("start", "profile", "generate", "surgery", "transformers")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


@click.command(help=__doc__)
@click.argument("directory", type=EXISTING)
@click.option("--llama-cpp", "tools", type=EXISTING, help="Directory of llama-bench and llama-imatrix.")
@click.option("--transformers", "reference", nargs=2, type=EXISTING, metavar="HF_MODEL F32_GGUF")
@click.option("--model", type=EXISTING, help="Another parent than the one that is made.")
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts of the table (repeatable).")
@click.option("--runs", default=5, show_default=True)
@click.option("--windows", default=8, show_default=True, help="Documents of 512 tokens in each run.")
@click.option("--threads", default=os.cpu_count() or 1, show_default=True)
def main(
    directory: Path,
    tools: Path | None,
    reference: tuple[Path, Path] | None,
    model: Path | None,
    only: tuple[str, ...],
    runs: int,
    windows: int,
    threads: int,
) -> None:
    parent = model or directory / "parent.gguf"
    if not parent.exists():
        making = directory / "making.gguf"
        random_gemma4.write(making, SHAPE, DEMO)
        making.rename(parent)

    def comparisons() -> Iterator[Comparison]:
        parts = only or PARTS
        if "start" in parts:
            yield from starting.comparisons(parent)
        if "profile" in parts:
            yield from profiling.comparisons(parent, directory, tools, windows, threads)
        if "generate" in parts:
            yield from generating.comparisons(parent, tools, threads)
        if "surgery" in parts:
            yield from surgery.comparisons(parent, directory)
        if "transformers" in parts and reference is not None:
            from benchmarks import transformers_hooks

            yield from transformers_hooks.comparisons(*reference, windows, threads)

    results = []
    for comparison in comparisons():
        results.append(side_by_side.run(comparison, runs))
        print(" | ".join(results[-1].cells()), file=sys.stderr, flush=True)
    side_by_side.show(
        results, f"{parent.name}, {processor()}, {threads} threads; medians of {runs} runs taken in turns"
    )


if __name__ == "__main__":
    main()
