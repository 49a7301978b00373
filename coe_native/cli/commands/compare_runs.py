"""The command ``coe-native compare-runs``."""

from __future__ import annotations

from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.generating import percent
from coe_native.cli.options import json_option
from coe_native.cli.output import print_json, print_table, say
from coe_native.cli.paired import difference_as_text, pairs_as_json, say_what_pairs_tell
from coe_native.cli.types import FILE


@click.command(name="compare-runs", cls=Command)
@click.argument("first", type=FILE, metavar="A.jsonl")
@click.argument("second", type=FILE, metavar="B.jsonl")
@json_option
def command(first: Path, second: Path, as_json: bool) -> None:
    """Compare two runs of humaneval, livecodebench or loops, task by task.

    Both must have answered the same tasks. The difference is B less A, in points, with its interval of 95 %
    (Newcombe, 1998); p is that of McNemar's exact test.
    """
    from coe_native.evaluation.attempts import read_attempts
    from coe_native.evaluation.paired import pair_runs

    paired = pair_runs(read_attempts(first), read_attempts(second), places=(str(first), str(second)))
    rows = {"overall": paired.overall, **paired.categories}
    if as_json:
        print_json(
            {
                "a": str(first),
                "b": str(second),
                "property": paired.property,
                **pairs_as_json(paired.overall),
                "a_count": paired.overall.shares[0].count,
                "b_count": paired.overall.shares[1].count,
                "unpaired": paired.n_unpaired,
                "categories": {name: pairs_as_json(pairs) for name, pairs in paired.categories.items()},
            }
        )
        return
    print_table(
        "",
        (paired.property, "tasks", "A", "B", "both", "only A", "only B", "neither", "B - A, points", "p"),
        [
            (
                name,
                str(pairs.total),
                *map(percent, pairs.shares),
                *map(str, (pairs.both, pairs.first, pairs.second, pairs.neither)),
                difference_as_text(pairs),
                f"{pairs.p_value:.2g}",
            )
            for name, pairs in rows.items()
        ],
    )
    if paired.n_unpaired:
        say(f"left out, because only one run has a result: {paired.n_unpaired}")
    say_what_pairs_tell(paired.overall, "pass@1" if paired.property == "passed" else "the looping share")
