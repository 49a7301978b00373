"""How far `eval` agrees with llama-perplexity: the same file, text and context, one after the other.

    python -m benchmarks.perplexity DIRECTORY --llama-cpp PATH/TO/llama.cpp/build/bin

Takes the demo's model and texts: for each text the parent's perplexity, and a specialist's (of half the experts)
with its KL divergence to the parent and top-1 agreement. llama-perplexity keeps its reference in a file, rounded
to 16 bits; `--no-repack` makes it use the layout that coe-native uses where the CPU has AMX.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from coe_native._native import core
from coe_native.recipes import demo

CONTEXTS = (512, 1024)


def theirs(tool: Path, last: str, model: Path, text: Path, n_ctx: int, *more: object) -> str:
    """What llama-perplexity prints, up to a line with `last`: now and then it ends before it has printed that."""
    layout = ["--no-repack"] if core.has_amx() else []
    line = [str(tool), "-m", model, "-f", text, "-c", n_ctx, "-t", 2, *layout, *more]
    for _ in range(5):
        run = subprocess.run(list(map(str, line)), capture_output=True, text=True, check=True)
        if last in run.stdout + run.stderr:
            break
    return run.stdout + run.stderr


def ours(*arguments: object) -> Any:
    command = [str(Path(sys.executable).with_name("coe-native")), *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def number(pattern: str, said: str) -> float:
    match = re.search(pattern, said)
    if match is None:
        raise SystemExit(f"llama-perplexity did not say {pattern}:\n{said[-2000:]}")
    return float(match[1])


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--llama-cpp", type=click.Path(path_type=Path, exists=True), required=True, help="Its tools.")
def main(directory: Path, llama_cpp: Path) -> None:
    """Measure both on the demo's model, in DIRECTORY."""
    tool = llama_cpp / "llama-perplexity"
    profile, specialist, base = (directory / name for name in ("p.gguf", "specialist.gguf", "base.kld"))
    ours("profile", demo.MODEL, "-c", demo.DATA / "python.profile.jsonl", "-o", profile, "--force")
    ours("prune", demo.MODEL, "--profile", profile, "--keep", 16, "-o", specialist, "--force")
    print("context  text    figure            ours        theirs     difference")
    for n_ctx in CONTEXTS:
        for kind in demo.KINDS:
            text = directory / f"{kind}.txt"
            text.write_text("".join(str(d.content) for d in demo.corpus(kind, "test").documents), encoding="utf-8")
            at = ("--text", text, "--ctx", n_ctx, "--batch", 512)
            parent = ours("eval", demo.MODEL, *at)["texts"][0]
            cut = ours("eval", specialist, *at, "--reference", demo.MODEL)["texts"][0]
            said = theirs(tool, "Final estimate", demo.MODEL, text, n_ctx, "--kl-divergence-base", base)
            of_cut = theirs(
                tool, "Same top p", specialist, text, n_ctx, "--kl-divergence-base", base, "--kl-divergence"
            )
            for figure, our_value, their_value in (
                ("parent PPL", parent["perplexity"], number(r"Final estimate: PPL = ([\d.]+)", said)),
                ("specialist PPL", cut["perplexity"], number(r"Mean PPL\(Q\) *: *([\d.]+)", of_cut)),
                ("KL divergence", cut["kl_divergence"], number(r"Mean +KLD: *([\d.]+)", of_cut)),
                ("same top", cut["top1_agreement"], number(r"Same top p: *([\d.]+)", of_cut) / 100),
            ):
                difference = our_value / their_value - 1
                print(
                    f"{n_ctx:<8} {kind:<7} {figure:<15} {our_value:9.5f}  {their_value:9.5f}  {difference:+12.4%}"
                )


if __name__ == "__main__":
    main()
