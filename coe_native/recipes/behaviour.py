"""Check how a written model answers: how many of its answers loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from coe_native.evaluation.attempts import Results, write_answers
from coe_native.evaluation.loops import loop_rates, with_loop
from coe_native.evaluation.tasks import Task, Writer
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.options import ModelOptions
from coe_native.surgery.verify import Check


def check_loops(
    path: Path,
    tasks: Sequence[Task],
    options: ModelOptions,
    *,
    max_share: float,
    max_tokens: int,
    raw: bool = False,
    progress: Callable[[int, int], None] = lambda n_answers, n_tokens: None,
) -> Check:
    """Let a model answer tasks, with the published sampling, and check that few answers loop.

    Args:
        path: The model.
        tasks: The tasks.
        options: How it is loaded; it writes as many answers at once as there are sequences.
        max_share: The largest share of answers that may loop.
        max_tokens: Most tokens of an answer.
        raw: Let it continue the prompts, instead of using its chat template.
        progress: Called with the finished answers, and the tokens written so far.

    Raises:
        InputError: The model cannot be loaded, or a task cannot be asked.
    """
    results = Results(None, "")
    with LoadedModel(path, options) as model:
        write_answers(tasks, Writer(model, max_tokens=max_tokens, raw=raw), results, progress)
    looping = loop_rates([with_loop(attempt) for attempt in results.all()]).looping
    low, high = looping.interval
    return Check(
        "few answers loop",
        looping.count <= max_share * looping.total,
        f"{looping.count} of {looping.total} loop ({low:.1%} to {high:.1%}); at most {max_share:.1%} allowed",
    )
