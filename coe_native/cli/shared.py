"""What several commands share: options, progress bars, tables, JSON."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coe_native.errors import InputError, printable
from coe_native.scoring import METHODS
from coe_native.units import counted, gigabytes

if TYPE_CHECKING:
    from coe_native.corpus import Corpus
    from coe_native.humaneval import Attempt
    from coe_native.moe_model import MoeModel
    from coe_native.profiler import Progress
    from coe_native.routing_profile import RoutingProfile
    from coe_native.runtime import Model
    from coe_native.specialise import Watchers

Function = TypeVar("Function", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose end is one line, even where llama.cpp crashes."""

    def invoke(self, ctx: click.Context) -> Any:
        from coe_native._native import core

        if not ctx.find_root().params.get("debug"):
            core.report_crashes("coe-native: ")
        return super().invoke(ctx)


class _File(click.Path):
    """A file's path. Python's Path forgets a slash at the end, which says that a directory is meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if param is not None and param.name == "output" and str(value).endswith("/"):
            raise InputError(f"{value}: is a directory's name; name a file in it")
        return super().convert(value, param, ctx)


FILE = _File(path_type=Path)
_INT32 = 2**31 - 1
COUNT = click.IntRange(1, _INT32)
THREADS = click.IntRange(1, 1024)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force_option = click.option("--force", is_flag=True, help="Overwrite an output that exists.")
method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    default="utility",
    show_default=True,
    help="How experts are scored.",
)
mask_option = click.option("--mask", "mask_path", type=FILE, required=True, help="Mask file.")
field_option = click.option("--field", help="Text column of .jsonl and .parquet corpora.")
corpus_option = click.option(
    "-c",
    "--corpus",
    "corpora",
    multiple=True,
    required=True,
    type=FILE,
    help="Text to profile: files, directories or - (repeatable).",
)


def load_profile(path: Path) -> RoutingProfile:
    """A profile, with a word about layers that have seen less than others."""
    from coe_native.routing_profile import RoutingProfile

    profile = RoutingProfile.load(path)
    if not profile.is_whole:
        say(f"{path}: {profile.shortfall}")
    return profile


class Size(click.ParamType[int]):
    """A number of bytes: 300M and 2GB are in powers of ten, 12GiB and 700MiB of two. A megabyte is the least: a
    forgotten unit would mean next to nothing."""

    name = "size"
    units: ClassVar = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?)(i?)B?", str(value), re.ASCII)
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** self.units[match[2]]) if match else 0
        if size < 10**6:
            self.fail(f"{value!r} is no size of at least 1M; write it like 300M, 2G or 12GiB", param, ctx)
        return size


split_option = click.option(
    "--split-max-size",
    "split_max_bytes",
    type=Size(),
    help="Write files of at most this size (300M, 2G), or of one larger tensor, named NAME-00001-of-0000N.gguf.",
)

_PLACEMENT_OPTIONS = (
    click.option(
        "--gpu-layers", type=click.IntRange(-1, _INT32), default=-1, help="Layers on the GPU; all if not given."
    ),
    click.option("--cpu-moe", is_flag=True, help="Keep all experts in host memory."),
    click.option(
        "--n-cpu-moe",
        type=click.IntRange(0, 1024),
        default=0,
        help="Keep the experts of the first N blocks in host memory.",
    ),
    click.option("--device", multiple=True, help="llama.cpp device to use (repeatable)."),
)


def model_options_with(*, ctx: int) -> Callable[[Function], Function]:
    """Options of commands that run a model, with a context of so many tokens if no other is given."""
    return together(
        (
            click.option(
                "--ctx", type=COUNT, default=ctx, show_default=True, help="Tokens of the longest window."
            ),
            click.option("--batch", type=COUNT, default=512, show_default=True, help="Tokens computed at once."),
            click.option("--threads", type=THREADS, help="CPU threads; all cores if not given."),
            *_PLACEMENT_OPTIONS,
            click.option(
                "--rpc",
                multiple=True,
                metavar="HOST:PORT",
                help="llama.cpp rpc-server whose devices to use (repeatable).",
            ),
        )
    )


def together(options: Sequence[Callable[[Function], Function]]) -> Callable[[Function], Function]:
    def decorate(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_options = model_options_with(ctx=512)
placement_options = together(_PLACEMENT_OPTIONS)


def open_model(
    path: Path,
    *,
    ctx: int,
    batch: int,
    threads: int | None,
    gpu_layers: int,
    cpu_moe: bool,
    n_cpu_moe: int,
    device: tuple[str, ...],
    rpc: tuple[str, ...],
    n_sequences: int = 1,
) -> Model:
    """A Model by the values of `model_options`."""
    from coe_native.runtime import Model

    return Model(
        path,
        n_ctx=ctx,
        n_batch=batch,
        n_sequences=n_sequences,
        n_threads=threads,
        n_gpu_layers=gpu_layers,
        n_cpu_moe=-1 if cpu_moe else n_cpu_moe,
        devices=device,
        rpc=rpc,
    )


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Imports packages that not everybody has: those of one of our extras."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"this needs {error.name}: pip install 'coe-native[{name}]'") from error


def say(message: str) -> None:
    """A message to standard error."""
    click.echo(printable(message), err=True)


def say_skipped(corpora: Sequence[Corpus]) -> None:
    """Says how many files of directories were passed by."""
    for corpus in corpora:
        if corpus.n_skipped:
            skipped = counted(corpus.n_skipped, "file")
            say(f"{corpus.name}: skipped {skipped}: hidden, not UTF-8 text, or links out of it")


def print_json(value: Any) -> None:
    """One JSON object to standard output."""
    click.echo(json.dumps(value, indent=1))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich ends the process here; how it ends is for the command line's own main to say."""
        raise BrokenPipeError


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, to_stderr: bool = False
) -> None:
    """An aligned table to standard output: the first column to the left, the others to the right."""
    table = Table(pad_edge=False, box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))  # as it is: a file's name may look like markup
    if title:
        click.echo(title, err=to_stderr)
    # A pipe has no width to fold for.
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    console = _Console(stderr=to_stderr, width=None if terminal else 10_000)
    console.print(table)


def size_of(model: MoeModel) -> str:
    """A model's name and size, and in how many files."""
    files = f" in {len(model.paths)} files" if len(model.paths) > 1 else ""
    return f"{model.path}: {gigabytes(model.n_bytes)}{files}"


class _Bar:
    """One line of progress with rate and time left on standard error; nothing where that is no terminal."""

    def __init__(self, description: str) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(description, total=None, rate="")

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def restart(self, description: str) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=None, rate="")

    def n_bytes(self, done: int, total: int) -> None:
        self._update(done, total, 1e6, "MB/s")

    def tokens(self, progress: Progress) -> None:
        self._update(progress.tokens, progress.total, 1, "tokens/s")

    def attempts(self, attempts: Mapping[str, Attempt], total: int) -> None:
        passed = sum(bool(attempt.passed) for attempt in attempts.values())
        judged = any(attempt.passed is not None for attempt in attempts.values())
        rate = f"{passed} passed" if judged else ""
        self._progress.update(self._task, completed=len(attempts), total=total, rate=rate)

    def _update(self, done: int, total: int, scale: float, unit: str) -> None:
        speed = self._progress.tasks[0].speed
        rate = "" if speed is None else f"{speed / scale:,.0f} {unit}"
        self._progress.update(self._task, completed=done, total=total, rate=rate)


@contextlib.contextmanager
def byte_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for work on files: called with bytes done and bytes in all."""
    with _Bar(description) as bar:
        yield bar.n_bytes


@contextlib.contextmanager
def token_progress(description: str) -> Iterator[Callable[[Progress], None]]:
    """A bar for work on tokens."""
    with _Bar(description) as bar:
        yield bar.tokens


@contextlib.contextmanager
def problem_progress(total: int) -> Iterator[Callable[[Mapping[str, Attempt]], None]]:
    """A bar for problems that are solved."""
    with _Bar("solving") as bar:
        yield lambda attempts: bar.attempts(attempts, total)


@contextlib.contextmanager
def step_progress() -> Iterator[Watchers]:
    """A bar that is begun anew with each step of a specialist."""
    from coe_native.specialise import Watchers

    with _Bar("loading") as bar:
        yield Watchers(bar.restart, bar.tokens, bar.n_bytes)
