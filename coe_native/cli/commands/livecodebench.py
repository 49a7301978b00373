"""The command ``coe-native livecodebench``."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from coe_native.cli.command import Command
from coe_native.cli.generating import (
    Generating,
    answered,
    generating_options,
    judge,
    judging_options,
    open_sandbox,
)
from coe_native.cli.problem_results import print_results
from coe_native.cli.types import FILE, MODEL
from coe_native.errors import InputError

_DATE = click.DateTime(["%Y-%m-%d"])


@click.command(name="livecodebench", cls=Command)
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--problems",
    multiple=True,
    required=True,
    type=FILE,
    help="Problems as published: .jsonl or .parquet files, or a directory of them (repeatable).",
)
@click.option(
    "--release",
    help="Files of a directory to take: release_v5 (up to the fifth), v5 (that one) or v2_v5; all if not given.",
)
@click.option("--from", "first", type=_DATE, help="First day of the contests to take.")
@click.option("--to", "last", type=_DATE, help="Last day.")
@judging_options(6.0, "each test of a program")
@generating_options("the answers")
def command(
    model: Path | None,
    problems: tuple[Path, ...],
    release: str | None,
    first: datetime.datetime | None,
    last: datetime.datetime | None,
    limit: int | None,
    time_limit: float,
    allow_code_execution: bool,
    allow_unisolated: bool,
    generating: Generating,
    as_json: bool,
) -> None:
    """Let MODEL solve LiveCodeBench's problems, and measure pass@1 by difficulty.

    Outputs are compared as the official grader does: line by line, and where lines differ, as decimals. A
    program passes if it passes all public and private tests. Programs run only with --allow-code-execution,
    isolated as in `humaneval`, with 4 GiB for all processes together.
    """
    from functools import partial

    from coe_native.evaluation.contest import (
        LIMITS,
        RAW_STOPS,
        Selection,
        contest_files,
        read_contest,
    )

    generating.check(model, judged=allow_code_execution)
    sandbox = open_sandbox(LIMITS, allow_unisolated=allow_unisolated) if allow_code_execution else None
    files = contest_files(problems, release)
    selection = Selection(first.date() if first else None, last.date() if last else None)
    # Twice, because the tests of all problems may not fit into memory.
    known = list(read_contest(files, with_tests=False))
    everything = [problem.task() for problem in known]
    chosen = [problem.task() for problem in known if selection.takes(problem)][:limit]
    if not chosen:
        raise InputError(f"{files[0]}: has no problem" + (" from --from to --to" if known else "s"))
    names = frozenset(task.task_id for task in chosen)
    if sandbox is not None:
        for _ in read_contest(files, Selection(names=names)):
            pass  # the tests can be read, so that no answer is written for a problem that cannot be judged
    results = answered(model, everything, chosen, generating, inputs=files, raw_stops=RAW_STOPS)
    if sandbox is not None:
        judges = (
            (problem.task_id, partial(problem.judge, sandbox=sandbox, seconds=time_limit))
            for problem in read_contest(files, Selection(names=names))
        )
        judge(judges, results, [task.task_id for task in chosen])
    results.save()
    attempts = results.all_of(task.task_id for task in chosen)
    print_results(generating.output, attempts, len(chosen), as_json=as_json)
