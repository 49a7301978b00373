"""Options that several commands share, and the values that they become."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from coe_native.cli.output import say
from coe_native.cli.types import COUNT, FILE, INT32, THREADS, Size
from coe_native.errors import InputError
from coe_native.routing.scores import METHODS
from coe_native.routing.stats import MIN_TOKENS

if TYPE_CHECKING:
    from coe_native.corpus.corpora import Corpus
    from coe_native.llama.options import ModelOptions
    from coe_native.routing.profile import RoutingProfile

Function = TypeVar("Function", bound=Callable[..., Any])

CTX_IN_USE = 8192
"""Default tokens of the context with which a specialist will be used."""

DATE = "2026-01-01"
"""Default date for chat templates that print one."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
force_option = click.option("--force", is_flag=True, help="Overwrite an output that exists.")
method_option = click.option(
    "--method",
    type=click.Choice(METHODS),
    help="How experts are scored; if not given, by contribution, or by utility where a profile has no activation "
    "norms.",
)
mask_option = click.option("--mask", "mask_path", type=FILE, required=True, help="Mask file.")
corpus_option = click.option(
    "-c",
    "--corpus",
    "corpora",
    multiple=True,
    required=True,
    type=FILE,
    help="Calibration text: files, directories or - (repeatable).",
)
min_tokens_option = click.option(
    "--min-tokens",
    type=click.IntRange(0, INT32),
    default=MIN_TOKENS,
    show_default=True,
    help="Experts that have seen fewer tokens get the mean of their layer in the importance matrix; 0: none.",
)
split_option = click.option(
    "--split-max-size",
    "split_max_bytes",
    type=Size(),
    help="Write files of at most this size (300M, 2G), or of one larger tensor, named NAME-00001-of-0000N.gguf.",
)

_PLACEMENT_OPTIONS = (
    click.option(
        "--gpu-layers", type=click.IntRange(-1, INT32), default=-1, help="Layers on the GPU; all if not given."
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
_RPC_OPTION = click.option(
    "--rpc", multiple=True, metavar="HOST:PORT", help="llama.cpp rpc-server whose devices to use (repeatable)."
)


def combine_options(options: Sequence[Callable[[Function], Function]]) -> Callable[[Function], Function]:
    """Return a decorator that adds several options, in this order."""

    def decorate(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@dataclass(frozen=True)
class Reading:
    """How the corpora of a command are read: see `coe_native.corpus.read.read_corpus`."""

    field: tuple[str, ...]
    encoding: str | None
    exclude: tuple[str, ...]
    include_ignored: bool
    parse_special: bool

    def corpora(self, paths: Sequence[Path], *, label: str | None = None, skip_bad: bool = False) -> list[Corpus]:
        """Read several corpora, and say which are read twice."""
        resolved = [path.resolve() for path in paths]
        for number, (path, whole) in enumerate(zip(paths, resolved, strict=True)):
            others = resolved[:number] + resolved[number + 1 :]
            if any(whole.is_relative_to(other) for other in others) and str(path) != "-":
                say(f"{path}: is named twice, so its text counts twice")
        return [self.corpus(path, label=label, skip_bad=skip_bad) for path in paths]

    def corpus(self, path: Path, *, label: str | None = None, skip_bad: bool = False) -> Corpus:
        """Read a corpus."""
        from coe_native.corpus.read import read_corpus

        return read_corpus(
            path,
            self.field,
            label=label,
            skip_bad=skip_bad,
            encoding=self.encoding,
            exclude=self.exclude,
            include_ignored=self.include_ignored,
            parse_special=self.parse_special,
        )


_READING_OPTIONS = (
    click.option("--field", multiple=True, help="Column with text, of files with records (repeatable; joined)."),
    click.option("--encoding", help="Encoding of text; UTF-8, or UTF-16 with a byte order mark, if not given."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Files to leave out (repeatable)."),
    click.option(
        "--include-ignored",
        is_flag=True,
        help="Also read what .gitignore names, folders of dependencies and builds, and lock files.",
    ),
    click.option(
        "--parse-special",
        is_flag=True,
        help="Parse special tokens in texts: for text that a chat template has rendered already.",
    ),
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how corpora are read, passed on as one `reading`."""

    @functools.wraps(command)
    def with_reading(
        *,
        field: tuple[str, ...],
        encoding: str | None,
        exclude: tuple[str, ...],
        include_ignored: bool,
        parse_special: bool,
        **others: Any,
    ) -> Any:
        return command(reading=Reading(field, encoding, exclude, include_ignored, parse_special), **others)

    return combine_options(_READING_OPTIONS)(with_reading)


def model_options(
    *, ctx: int = 512, rpc: bool = True, batch_by_device: bool = False
) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of loading a model, passed on as one `options`.

    Args:
        ctx: Default tokens of the context.
        rpc: Whether there is an option for rpc-servers.
        batch_by_device: Whether batches are larger on a GPU. Not where a batch needs logits for all its tokens:
            these take 2 GB for 2048 tokens and a vocabulary of 262,144.
    """
    options = (
        click.option("--ctx", type=COUNT, default=ctx, show_default=True, help="Tokens of the longest window."),
        click.option(
            "--batch",
            type=COUNT,
            default=None if batch_by_device else 512,
            show_default="512; 2048 on a GPU that has the memory" if batch_by_device else True,
            help="Tokens computed at once.",
        ),
        click.option("--threads", type=THREADS, help="CPU threads; all cores if not given."),
        click.option(
            "--date",
            default=DATE,
            show_default=True,
            metavar="YYYY-MM-DD",
            help="Date for chat templates that print one.",
        ),
        *_PLACEMENT_OPTIONS,
        *((_RPC_OPTION,) if rpc else ()),
    )
    return _passing_options(options)


def placement_options(*, with_ctx: bool = True) -> Callable[[Function], Function]:
    """Return a decorator that adds the options of how a specialist will be used, passed on as `options`.

    Args:
        with_ctx: Whether there is an option for the context.
    """
    option = click.option(
        "--ctx",
        type=COUNT,
        default=CTX_IN_USE,
        show_default=True,
        help="Tokens of the context, which must fit too.",
    )
    return _passing_options((*((option,) if with_ctx else ()), *_PLACEMENT_OPTIONS))


def _passing_options(options: Sequence[Callable[..., Any]]) -> Callable[[Function], Function]:
    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def with_options(
            *,
            gpu_layers: int,
            cpu_moe: bool,
            n_cpu_moe: int,
            device: tuple[str, ...],
            ctx: int = CTX_IN_USE,
            batch: int | None = 512,
            threads: int | None = None,
            rpc: tuple[str, ...] = (),
            date: str = DATE,
            **others: Any,
        ) -> Any:
            from coe_native.llama.options import BATCH, BATCH_ON_GPU, ModelOptions

            given = ModelOptions(
                n_ctx=ctx,
                n_batch=batch or BATCH,
                n_batch_on_gpu=BATCH_ON_GPU if batch is None else 0,
                n_threads=threads,
                n_gpu_layers=gpu_layers,
                n_cpu_moe=-1 if cpu_moe else n_cpu_moe,
                devices=device,
                rpc=rpc,
                date=date,
            )
            return command(options=given, **others)

        return cast("Function", combine_options(options)(with_options))

    return decorate


def for_use(options: ModelOptions, n_ctx: int) -> ModelOptions:
    """Return the options of using a specialist, with another context than that of this command."""
    from dataclasses import replace

    return replace(options, n_ctx=n_ctx, n_batch=512, rpc=())


def say_offload(options: ModelOptions) -> None:
    """Say that memory is planned with experts in host memory, if it is."""
    if options.n_cpu_moe:
        blocks = "all blocks" if options.n_cpu_moe < 0 else f"the first {options.n_cpu_moe} blocks"
        say(f"--fit is planned with the experts of {blocks} in host memory, as for the model itself")


def load_profile(path: Path) -> RoutingProfile:
    """Read a profile, and say which layers have seen fewer tokens than others."""
    from coe_native.routing.profile import RoutingProfile

    profile = RoutingProfile.load(path)
    if not profile.is_whole:
        say(f"{path}: {profile.shortfall}")
    return profile


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Report a package that is missing in the block, with the extra that brings it.

    Raises:
        InputError: One is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"this needs {error.name}: pip install 'coe-native[{name}]'") from error
