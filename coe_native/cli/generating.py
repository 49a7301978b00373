"""What the commands share that let a model answer: their options, and a run that can be resumed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from coe_native.cli.options import CTX_IN_USE, combine_options, force_option, json_option, model_options
from coe_native.cli.output import say
from coe_native.cli.progress import answer_progress, problem_progress
from coe_native.cli.types import COUNT, FILE
from coe_native.errors import InputError
from coe_native.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coe_native.evaluation.attempts import Attempt, Results
    from coe_native.evaluation.bubblewrap import Limits
    from coe_native.evaluation.intervals import Share
    from coe_native.evaluation.sandbox import Outcome, Sandbox
    from coe_native.evaluation.tasks import Task, Writer
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.llama.options import ModelOptions
    from coe_native.masks.expert_mask import ExpertMask

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Generating:
    """How a command's answers are written, or read from a file.

    Attributes:
        output: The file of answers; None: they are not kept.
        answers: A file of ready-made answers; None: the model writes them.
        mask_path: The mask to apply live.
        options: How the model is loaded.
        resume: Continue the output.
        force: Replace the output.
        raw, thinking, max_tokens, stop: See `Writer`.
        temperature, top_k, top_p, repeat_penalty, seed: See `Sampling`.
    """

    output: Path | None
    answers: Path | None
    mask_path: Path | None
    options: ModelOptions
    resume: bool
    force: bool
    raw: bool
    thinking: bool
    temperature: float
    top_k: int
    top_p: float
    repeat_penalty: float
    seed: int
    max_tokens: int
    stop: tuple[str, ...]

    def writer(self, model: LoadedModel, raw_stops: tuple[str, ...] = ()) -> Writer:
        """Return what writes the answers.

        Args:
            model: The model.
            raw_stops: Where answers end with --raw, if no other place is given.
        """
        from coe_native.evaluation.tasks import Writer
        from coe_native.llama.generation import Sampling

        stop = tuple(text.replace("\\n", "\n") for text in self.stop) or (raw_stops if self.raw else ())
        sampling = Sampling(
            self.temperature, self.top_k, self.top_p, repeat_penalty=self.repeat_penalty, seed=self.seed
        )
        return Writer(model, sampling, self.max_tokens, stop, self.raw, self.thinking)

    def mask(self) -> ExpertMask | None:
        """Read the mask, if there is one."""
        from coe_native.masks.expert_mask import ExpertMask

        return None if self.mask_path is None else ExpertMask.load(self.mask_path)

    def check(self, model: Path | None, *, judged: bool = True) -> None:
        """Check that answers come from somewhere and go somewhere, and that a run to resume has a file.

        Args:
            model: The model that answers.
            judged: Whether the answers are judged at once.

        Raises:
            InputError: They do not, or options contradict each other.
        """
        if model is None and self.answers is None:
            raise InputError("give a MODEL that answers, or ready-made answers with --answers")
        if self.answers is None and self.output is None and not judged:
            raise InputError("answers would be neither kept nor judged: give -o FILE or --allow-code-execution")
        if self.answers is not None and (self.mask_path is not None or self.resume):
            option = "--mask" if self.mask_path is not None else "--resume"
            raise InputError(f"{option} is for answers that a model writes; leave it out with --answers")
        if self.resume and self.output is None:
            raise InputError("--resume needs the file of answers to continue: -o FILE")
        if self.answers is not None and model is not None:
            say(f"{self.answers}: answers are read from here, so {model} is not loaded")


def generating_options(what: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of writing answers, passed on as one `generating`.

    Args:
        what: What the output's lines are, for the help.
    """
    options = (
        click.option("-o", "--output", type=FILE, help=f".jsonl file to keep {what} in."),
        click.option(
            "--answers",
            type=FILE,
            help="Judge the answers in this file, without a model: task_id with completion (what a model wrote) "
            "or solution (a program), or question_id and code_list (programs).",
        ),
        click.option(
            "--mask",
            "mask_path",
            type=FILE,
            help="Mask to apply live to MODEL: judges a specialist without writing it.",
        ),
        click.option(
            "--parallel",
            type=click.IntRange(1, 256),
            default=8,
            show_default=True,
            help="Answers written at once; they share the context.",
        ),
        click.option("--raw", is_flag=True, help="Do not use the chat template: the model continues the prompt."),
        click.option(
            "--thinking",
            type=click.Choice(["on", "off"]),
            default="off",
            show_default=True,
            help="Whether the model may think before it answers, where its chat template knows that.",
        ),
        click.option(
            "--temperature",
            default=0.6,
            show_default=True,
            help="Sampling temperature; 0 always takes the likeliest token.",
        ),
        click.option(
            "--top-k",
            type=click.IntRange(0),
            default=40,
            show_default=True,
            help="Sample from this many of the likeliest tokens; 0: from all.",
        ),
        click.option(
            "--top-p",
            default=0.95,
            show_default=True,
            help="Sample from the likeliest tokens that have this probability together.",
        ),
        click.option(
            "--repeat-penalty",
            default=1.05,
            show_default=True,
            help="Penalty for tokens that occurred before; 1: none.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Seed from which each task gets its own.",
        ),
        click.option(
            "--max-tokens", type=COUNT, default=16384, show_default=True, help="Maximum tokens of an answer."
        ),
        click.option(
            "--stop", multiple=True, help="End an answer before this text (repeatable); \\n is a new line."
        ),
        click.option("--resume", is_flag=True, help="Resume from OUTPUT if it exists."),
        model_options(ctx=CTX_IN_USE),
        force_option,
        json_option,
    )

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_generating(
            *,
            output: Path | None,
            answers: Path | None,
            mask_path: Path | None,
            parallel: int,
            raw: bool,
            thinking: str,
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
            **others: Any,
        ) -> Any:
            generating = Generating(
                output=output,
                answers=answers,
                mask_path=mask_path,
                options=replace(options, n_sequences=parallel),
                resume=resume,
                force=force,
                raw=raw,
                thinking=thinking == "on",
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repeat_penalty=repeat_penalty,
                seed=seed,
                max_tokens=max_tokens,
                stop=stop,
            )
            return command(generating=generating, **others)

        return cast("Function", combine_options(options)(with_generating))

    return decorate


def judging_options(seconds: float, what: str) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of running the programs that answer problems.

    Args:
        seconds: The default time limit.
        what: What it limits, for the help.
    """
    options = (
        click.option(
            "--limit", type=COUNT, help="Number of problems to solve, from the first one on; all if not given."
        ),
        click.option(
            "--time-limit",
            type=click.FloatRange(0.1, 3600),
            default=seconds,
            show_default=True,
            help=f"Seconds that {what} may take.",
        ),
        click.option(
            "--allow-code-execution",
            is_flag=True,
            help="Run the programs that the model writes, in bubblewrap (Linux), to judge them.",
        ),
        click.option(
            "--allow-unisolated",
            is_flag=True,
            help="With --allow-code-execution: run programs even if bubblewrap does not work. They can then read, "
            "change and send everything that you can.",
        ),
    )
    return combine_options(options)


def open_sandbox(limits: Limits, *, allow_unisolated: bool) -> Sandbox:
    """Return where programs run. Called before a model is loaded, to fail early."""
    from coe_native.evaluation import sandbox

    opened = sandbox.open_sandbox(limits, allow_unisolated=allow_unisolated)
    if not opened.isolated:
        say(
            f"warning: programs that the model writes run unisolated ({opened.why_unisolated}): they can read, "
            "change and send everything that you can"
        )
    return opened


def answered(
    model: Path | None,
    everything: Sequence[Task],
    tasks: Sequence[Task],
    generating: Generating,
    *,
    inputs: Sequence[Path] = (),
    raw_stops: tuple[str, ...] = (),
) -> Results:
    """Return the answers to tasks: ready-made ones, or those that a model has written.

    Args:
        model: The model.
        everything: All tasks of the file, by which a run is recognised.
        tasks: The tasks to answer.
        generating: How they are written.
        inputs: Files that must not be replaced.
        raw_stops: Where answers end with --raw.
    """
    if generating.answers is not None:
        return ready_made(everything, tasks, generating, inputs=inputs)
    from coe_native.evaluation.attempts import Results
    from coe_native.llama.loaded_model import LoadedModel
    from coe_native.model.header import ModelHeader

    assert model is not None
    mask = generating.mask()
    given = (*ModelHeader(model).paths, *inputs, *((generating.mask_path,) if generating.mask_path else ()))
    with LoadedModel(model, generating.options) as loaded:
        if mask is not None:
            loaded.apply(mask)
        writer = generating.writer(loaded, raw_stops)
        results = Results(
            generating.output,
            writer.run(everything),
            resume=generating.resume,
            force=generating.force,
            inputs=given,
        )
        write(tasks, writer, results, "answering")
    return results


def write(tasks: Sequence[Task], writer: Writer, results: Results, description: str) -> None:
    """Let a model answer tasks, with a progress bar. After Ctrl-C, say how to continue."""
    from coe_native.evaluation.attempts import write_answers

    try:
        with results, answer_progress(description, len(tasks) * writer.samples) as progress:
            write_answers(tasks, writer, results, progress)
    except KeyboardInterrupt:
        if results.path is not None:
            answers = counted(len(results), "answer")
            say(f"{results.path}: has {answers}; run the same command with --resume to continue")
        raise


def ready_made(
    everything: Sequence[Task], tasks: Sequence[Task], generating: Generating, *, inputs: Sequence[Path] = ()
) -> Results:
    """Return the ready-made answers to tasks, and say which tasks have none. Without tasks, all are returned."""
    from coe_native.evaluation.answer_files import read_answers
    from coe_native.evaluation.attempts import Results

    assert generating.answers is not None
    read = read_answers(generating.answers)
    results = Results(generating.output, "", force=generating.force, inputs=(generating.answers, *inputs))
    if not everything:
        for answer in read:
            results.add(answer)
        return results
    categories = {task.task_id: task.category for task in everything}
    unknown = sorted({answer.task_id for answer in read} - set(categories))
    if unknown:
        raise InputError(
            f"{generating.answers}: has an answer to {unknown[0][:80]}, which is none of {len(categories)} tasks"
        )
    wanted = {task.task_id for task in tasks}
    for answer in read:
        if answer.task_id in wanted:
            results.add(with_category(answer, categories[answer.task_id]))
    missing = len(wanted - {answer.task_id for answer in read})
    if missing == len(wanted):
        raise InputError(f"{generating.answers}: has no answer to the chosen tasks")
    if missing:
        say(f"{generating.answers}: has no answer to {missing} of {len(wanted)} tasks, which are left out")
    return results


def with_category(answer: Attempt, category: str) -> Attempt:
    """Return an answer with the category of its task."""
    import msgspec

    return msgspec.structs.replace(answer, category=category)


def judge(
    judges: Iterable[tuple[str, Callable[[str], Outcome]]], results: Results, task_ids: Sequence[str]
) -> None:
    """Run the programs of answers to tasks, with a progress bar. After Ctrl-C, say how to continue."""
    from coe_native.evaluation.attempts import judge_answers

    try:
        with results, problem_progress(len(results.all_of(task_ids))) as progress:
            judge_answers(judges, results, progress)
    except KeyboardInterrupt:
        if results.path is not None:
            again = "--resume to judge the others" if results.run else "--force to judge all"
            say(f"{results.path}: has all answers; run the same command with {again}")
        raise


def share_as_json(share: Share) -> dict[str, Any]:
    """Return a share and its interval of 95 % for JSON."""
    return {"share": share.value, "interval": list(share.interval) if share.total else None}


def percent(share: Share) -> str:
    """Return a share as text."""
    return "unknown" if share.value is None else f"{share.value:.1%}"


def share_as_text(share: Share) -> str:
    """Return a share and its interval of 95 % as text."""
    low, high = share.interval
    return percent(share) + (f" ({low:.1%} to {high:.1%})" if share.total else "")
