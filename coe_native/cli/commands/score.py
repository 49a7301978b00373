"""The command ``coe-native score``."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.options import json_option, load_profile, method_option
from coe_native.cli.output import print_json, print_table
from coe_native.cli.types import COUNT, FILE


@click.command(name="score", cls=Command)
@click.argument("profile", type=FILE)
@method_option
@click.option(
    "--top", type=COUNT, default=8, show_default=True, help="Experts to show in each layer of the table."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print all scores as CSV.")
@json_option
def command(profile: Path, method: str | None, top: int, as_csv: bool, as_json: bool) -> None:
    """Print the score of every expert in PROFILE."""
    from coe_native.routing.scores import default_method, score

    loaded = load_profile(profile)
    method = method or default_method([loaded])
    scores = score(loaded, method)
    if as_json:
        print_json(
            {
                "method": method,
                "tokens": loaded.n_tokens,
                "layers": {str(b): row.tolist() for b, row in zip(loaded.layers, scores, strict=True)},
            }
        )
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["layer", "expert", "score", "chosen", "mean_rank"])
        for i, block in enumerate(loaded.layers):
            for expert in range(loaded.n_experts):
                mean_rank = loaded.mean_rank[i, expert]
                writer.writerow([block, expert, scores[i, expert], loaded.counts[i, expert], mean_rank])
    else:
        best = (-scores).argsort(axis=1, kind="stable")[:, :top]
        print_table(
            f"{method}, {loaded.n_tokens} tokens: the {best.shape[1]} highest of {loaded.n_experts} experts",
            ["layer", *(f"#{i + 1}" for i in range(best.shape[1]))],
            [
                [str(block), *(f"{expert}: {scores[i, expert]:.4g}" for expert in best[i])]
                for i, block in enumerate(loaded.layers)
            ],
        )
