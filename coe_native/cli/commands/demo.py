"""The command ``coe-native demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.options import force_option, json_option
from coe_native.cli.output import print_json, print_table, say
from coe_native.cli.progress import step_progress
from coe_native.cli.types import FILE, THREADS
from coe_native.units import gigabytes

if TYPE_CHECKING:
    from coe_native.evaluation.perplexity import Evaluation
    from coe_native.recipes.demo import Demo


@click.command(name="demo", cls=Command)
@click.option(
    "-o", "--output", type=FILE, default=Path("coe-demo"), show_default=True, help="Directory to write to."
)
@click.option("--threads", type=THREADS, help="CPU threads; all cores if not given.")
@click.option(
    "--inputs-only",
    is_flag=True,
    help="Only copy the model and texts to the directory, for trying other commands.",
)
@force_option
@json_option
def command(output: Path, threads: int | None, inputs_only: bool, force: bool, as_json: bool) -> None:
    """Make three specialists of the packaged 13 M parameter Gemma 4 and compare them with their parent.

    They are for Python code, English prose and C++, and keep half of the experts. No network is needed.
    """
    from coe_native.recipes import demo
    from coe_native.surgery.notice import safety_notice

    if inputs_only:
        copied = demo.copy_inputs(output, force=force)
        if as_json:
            print_json({"files": [str(path) for path in copied]})
        else:
            names = ", ".join(path.name for path in copied)
            say(f"{output}/ has the demo's model, texts, problems and prompts: {names}")
        return
    with step_progress() as watchers:
        result = demo.run(output, n_threads=threads, force=force, watchers=watchers)
    if as_json:
        print_json(_as_json(result))
        return
    rows = [["parent", "", gigabytes(result.parent_bytes), *_cells(result.parent, None)]]
    for kind, specialist in result.specialists.items():
        size = gigabytes(specialist.path.stat().st_size)
        method = specialist.method
        rows.append([f"{kind} specialist", f"{method}, live", "", *_cells(specialist.live_masked, result.parent)])
        rows.append(["", f"{method}, pruned", size, *_cells(specialist.pruned, result.parent)])
        for other, evaluations in specialist.other_methods.items():
            rows.append(["", f"{other}, live", "", *_cells(evaluations, result.parent)])
    print_table(
        "Perplexity on held-out text, and its rise over the parent's (lower is better)",
        ["model", "", "size", *demo.KINDS],
        rows,
    )
    say(f"Specialists, profiles, masks and reports are in {output}/")
    say(safety_notice(method))


def _cells(results: Sequence[Evaluation], parent: Sequence[Evaluation] | None) -> list[str]:
    if parent is None:
        return [f"{result.perplexity:.2f}       " for result in results]
    return [
        f"{ours.perplexity:.2f} {ours.loss(theirs):+6.1%}" for ours, theirs in zip(results, parent, strict=True)
    ]


def _as_json(result: Demo) -> dict[str, Any]:
    return {
        "parent": {"bytes": result.parent_bytes, "evaluation": [asdict(e) for e in result.parent]},
        "specialists": {
            kind: {
                "path": str(specialist.path),
                "bytes": specialist.path.stat().st_size,
                "checks": [asdict(check) for check in specialist.checks],
                "method": specialist.method,
                "live_masked": [asdict(e) for e in specialist.live_masked],
                "pruned": [asdict(e) for e in specialist.pruned],
                "other_methods": {
                    method: [asdict(e) for e in evaluations]
                    for method, evaluations in specialist.other_methods.items()
                },
            }
            for kind, specialist in result.specialists.items()
        },
    }
