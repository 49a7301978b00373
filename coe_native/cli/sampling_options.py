"""Options of the sampling settings that a specialist's file carries for llama.cpp's programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from coe_native.cli.options import combine_options
from coe_native.errors import InputError

if TYPE_CHECKING:
    from coe_native.model.sampler_defaults import SamplerDefaults

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--temperature",
        type=float,
        help="Temperature that llama.cpp's programs take from the file; MODEL's own, or 0.6, if not given.",
    ),
    click.option(
        "--repeat-penalty",
        type=float,
        help="Repeat penalty that they take from the file; MODEL's own, or 1.05, if not given.",
    ),
    click.option("--no-sampling", is_flag=True, help="Add no sampling settings to the file."),
)


def sampling_options(command: Function) -> Function:
    """Add the options of a specialist's sampling settings, passed on as one `sampling`."""

    @functools.wraps(command)
    def with_sampling(
        *, temperature: float | None, repeat_penalty: float | None, no_sampling: bool, **others: Any
    ) -> Any:
        from coe_native.model.sampler_defaults import SamplerDefaults

        if no_sampling and (temperature is not None or repeat_penalty is not None):
            raise InputError("--no-sampling adds no settings: leave out --temperature and --repeat-penalty")
        sampling: SamplerDefaults | None = None if no_sampling else SamplerDefaults(temperature, repeat_penalty)
        return command(sampling=sampling, **others)

    return cast("Function", combine_options(_OPTIONS)(with_sampling))
