"""The command ``coe-native loops``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coe_native.cli.command import Command
from coe_native.cli.generating import Generating, generating_options, percent, ready_made, share_as_text, write
from coe_native.cli.output import print_json, print_table, say
from coe_native.cli.paired import pairs_as_json, say_what_pairs_tell
from coe_native.cli.types import COUNT, FILE, MODEL
from coe_native.errors import CoeError, InputError, printable
from coe_native.units import counted

if TYPE_CHECKING:
    from coe_native.evaluation.attempts import Attempt, Results
    from coe_native.evaluation.loops import LoopRates
    from coe_native.evaluation.tasks import Task

_MOST_NAMED = 5
"""Prompts that are named as those with the most loops."""


@click.command(name="loops", cls=Command)
@click.argument("model", type=MODEL, required=False)
@click.option(
    "--prompts",
    type=FILE,
    help="Prompts: a text file with one in each line, or .jsonl, .json, .csv or .parquet with prompt, question or "
    "messages. Needed unless --answers is given.",
)
@click.option("--limit", type=COUNT, help="Number of prompts, from the first one on; all if not given.")
@click.option("--samples", type=COUNT, default=1, show_default=True, help="Answers to each prompt.")
@click.option(
    "--precision",
    type=click.FloatRange(0, 50, min_open=True),
    default=5.0,
    show_default=True,
    help="Points; warn if the interval of the looping share is wider than ± this.",
)
@click.option(
    "--max-loops",
    type=click.FloatRange(0, 100),
    help="Fail if a larger share of the answers loops, in per cent.",
)
@generating_options("the answers")
def command(
    model: Path | None,
    prompts: Path | None,
    limit: int | None,
    samples: int,
    precision: float,
    max_loops: float | None,
    generating: Generating,
    as_json: bool,
) -> None:
    """Measure how many of MODEL's answers loop, never end, or are cut off by the context.

    An answer loops if it ends with at least three copies of the same text, of any length. With --mask, the parent
    answers the same prompts with the same seeds, and both are compared prompt by prompt; its answers are kept in
    OUTPUT.parent.jsonl.
    """
    from coe_native.evaluation.loops import loop_rates
    from coe_native.evaluation.paired import pair_runs
    from coe_native.evaluation.prompts import read_prompts

    generating.check(model)
    if prompts is None and generating.answers is None:
        raise InputError("give the prompts to answer: --prompts FILE")
    if generating.answers is not None and (samples > 1 or (limit is not None and prompts is None)):
        option = "--samples" if samples > 1 else "--limit without --prompts"
        raise InputError(f"{option} is for answers that a model writes; leave it out with --answers")
    everything = [] if prompts is None else read_prompts(prompts)
    chosen = everything[:limit]
    runs = _runs(model, everything, chosen, generating, samples, prompts)
    looked_at = {name: _with_loops(results, chosen) for name, results in runs.items()}
    attempts = looked_at["model"]
    rates = loop_rates(attempts)
    paired = pair_runs(looked_at["parent"], attempts).overall if "parent" in looked_at else None
    texts = {task.task_id: task.beginning for task in everything}
    if as_json:
        told = _as_json(rates) | {"prompts": _most(attempts, texts)}
        if paired is not None:
            told |= {"parent": _as_json(loop_rates(looked_at["parent"])), "paired": pairs_as_json(paired)}
        print_json(told)
    else:
        _print_rates({name: loop_rates(members) for name, members in looked_at.items()})
        for named in _most(attempts, texts):
            shown = printable(str(named["prompt"]), 60)
            say(f"loops in {named['looping']} of {named['total']} answers: {named['task_id']} {shown}".rstrip())
        n_more = len({attempt.task_id for attempt in attempts if attempt.looping}) - _MOST_NAMED
        if n_more > 0:
            say(f"and in answers to {counted(n_more, 'more prompt')}")
        if paired is not None:
            say_what_pairs_tell(paired, "the looping share")
    share = rates.looping
    if share.precision > precision / 100:
        say(
            f"warning: the looping share is known to ±{100 * share.precision:.1f} points, from "
            f"{counted(share.total, 'answer')}; ±{precision:g} points need about {share.needed(precision / 100)} "
            "(more prompts, or --samples)"
        )
    if max_loops is not None and share.value is not None and share.value > max_loops / 100:
        raise CoeError(f"{share.value:.1%} of the answers loop, more than {max_loops:g} %")


def _runs(
    model: Path | None,
    everything: Sequence[Task],
    tasks: Sequence[Task],
    generating: Generating,
    samples: int,
    prompts: Path | None,
) -> dict[str, Results]:
    """Return the answers of the parent, where there is a mask, and of the model."""
    from coe_native.evaluation.attempts import Results
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader

    if generating.answers is not None:
        return {"model": ready_made(everything, tasks, generating, inputs=() if prompts is None else (prompts,))}
    assert model is not None
    mask = generating.mask()
    given = [*ModelHeader(model).paths, *(path for path in (prompts, generating.mask_path) if path is not None)]
    output = generating.output
    runs = {}
    with LoadedModel(model, generating.options) as loaded:
        writer = replace(generating.writer(loaded), samples=samples)

        def opened(path: Path | None) -> Results:
            run = writer.run(everything)
            return Results(path, run, resume=generating.resume, force=generating.force, inputs=given)

        # Both files are opened before the first answer is written, because either can be refused.
        if mask is not None:
            runs["parent"] = opened(output and output.with_name(f"{output.name}.parent.jsonl"))
            loaded.apply(mask)
        runs["model"] = opened(output)
        if mask is not None:
            loaded.clear_mask()
            write(tasks, writer, runs["parent"], "parent")
            loaded.apply(mask)
        write(tasks, writer, runs["model"], "answering")
    return runs


def _with_loops(results: Results, tasks: Sequence[Task]) -> list[Attempt]:
    """Look for loops in all answers, and return those to some tasks, or all if there are none."""
    from coe_native.evaluation.loops import with_loop

    with results:
        for attempt in results.all():
            if attempt.looping is None:
                results.add(with_loop(attempt))
    return results.all_of(task.task_id for task in tasks) if tasks else results.all()


def _as_json(rates: LoopRates) -> dict[str, Any]:
    return {
        "total": rates.looping.total,
        "looping": rates.looping.count,
        "share": rates.looping.value,
        "interval": list(rates.looping.interval),
        "unfinished": rates.unfinished.count if rates.unfinished.total else None,
        "truncated": rates.truncated.count if rates.truncated.total else None,
        "tokens": rates.tokens,
    }


def _most(attempts: Sequence[Attempt], texts: dict[str, str]) -> list[dict[str, Any]]:
    from coe_native.evaluation.loops import most_looping

    return [
        {"task_id": task_id, "looping": looping, "total": total, "prompt": texts.get(task_id, "")}
        for task_id, looping, total in most_looping(attempts)[:_MOST_NAMED]
    ]


def _print_rates(runs: dict[str, LoopRates]) -> None:
    several = len(runs) > 1
    names = {"parent": "parent", "model": "specialist" if several else "answers"}
    print_table(
        "",
        ("", "answers", "looping (95 % interval)", "unfinished", "truncated", "tokens"),
        [
            (
                names[name],
                str(rates.looping.total),
                share_as_text(rates.looping),
                percent(rates.unfinished),
                percent(rates.truncated),
                str(rates.tokens),
            )
            for name, rates in runs.items()
        ],
    )
