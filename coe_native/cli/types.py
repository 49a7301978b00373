"""The types of the command line's values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import click

from coe_native.errors import InputError


class _File(click.Path):
    """A file's path. A slash at the end is checked here, because Python's Path drops it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if param is not None and param.name == "output" and str(value).endswith("/"):
            raise InputError(f"{value}: ends with a slash, which names of files do not; leave it out")
        if value == "":
            raise InputError(f"{'a path' if param is None else param.human_readable_name}: is empty; name a file")
        return super().convert(value, param, ctx)


class _Model(_File):
    """A model's file, given by its path or by a name that Ollama or Hugging Face have for it."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from coe_native.model.names import model_path

        return super().convert(model_path(value) if isinstance(value, str) else value, param, ctx)


FILE = _File(path_type=Path)

MODEL = _Model(path_type=Path)

INT32 = 2**31 - 1


COUNT = click.IntRange(1, INT32)

THREADS = click.IntRange(1, 1024)


class Size(click.ParamType[int]):
    """A number of bytes, such as 300M or 2GB (powers of ten), 700MiB or 12GiB (powers of two).

    Less than a megabyte is refused, because the unit was probably forgotten.
    """

    name = "size"
    units: ClassVar = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes that a text stands for."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([KMGT]?)(i?)B?", str(value), re.ASCII)
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** self.units[match[2]]) if match else 0
        if size < 10**6:
            self.fail(f"{value!r} is not a size of at least 1M; write it like 300M, 2G or 12GiB", param, ctx)
        return size


class Share(click.ParamType[float]):
    """A share, written ``1.5%`` or ``0.015``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the share as a number."""
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,9})?)(%?)", str(value), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a share; write it like 5%", param, ctx)
        if not match[2] and float(match[1]) > 1:
            self.fail(f"{value!r} means {value} times as much; write {value}% for per cent", param, ctx)
        return float(match[1]) / (100 if match[2] else 1)
