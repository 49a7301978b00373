"""What several commands share: options, progress bars, tables, JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coe_native.cli.output import say
from coe_native.cli.types import _INT32, COUNT, FILE, THREADS, Size
from coe_native.errors import InputError
from coe_native.routing.scores import METHODS

if TYPE_CHECKING:
    from coe_native.llama.loaded_model import Model
    from coe_native.routing.profile import RoutingProfile

Function = TypeVar("Function", bound=Callable[..., Any])


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
    from coe_native.routing.profile import RoutingProfile

    profile = RoutingProfile.load(path)
    if not profile.is_whole:
        say(f"{path}: {profile.shortfall}")
    return profile


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
    from coe_native.llama.loaded_model import Model

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
