"""JSON from files, checked against the types that it is read into."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from coe_native.errors import InputError
from coe_native.files.regular import open_regular

Value = TypeVar("Value")


class _Head(msgspec.Struct):
    """What says whether a file is of a format and version that we can read."""

    format: str = ""
    version: int = 0


@dataclass(frozen=True)
class Kind:
    """One of our formats: its name and newest version, the most bytes that a file of it has, what to call it, and
    how to make one."""

    name: str
    version: int
    most_bytes: int
    what: str
    advice: str

    def read(self, path: Path) -> bytes:
        """The bytes of a JSON file of this format. Raises InputError for one that can't be read or is none, and
        for a newer version."""
        try:
            with open_regular(path) as file:
                data = file.read(self.most_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.check(data if len(data) <= self.most_bytes else b"", str(path))
        return data

    def check(self, data: bytes, place: str) -> None:
        """Raises InputError for bytes, from a `place`, that are no document of this format and our versions."""
        try:
            head = decode(data, _Head)
        except InputError:
            head = _Head()
        if head.format != self.name:
            raise InputError(f"{place}: is not a {self.what}; {self.advice}")
        if not 1 <= head.version <= self.version:
            raise InputError(
                f"{place}: has {self.what} version {head.version}; this coe-native reads up to {self.version}"
            )


def decode(data: bytes | str, kind: type[Value]) -> Value:
    """A document as a value of a type that msgspec knows: a Struct, a dataclass, or a container of such. Raises
    InputError, saying what is wrong and where."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(str(error)) from error
