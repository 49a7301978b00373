"""JSON files that are checked against Python types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from coe_native.errors import InputError
from coe_native.files.regular import open_regular

Value = TypeVar("Value")


class _Head(msgspec.Struct):
    """The keys that give a file's format and version."""

    format: str = ""
    version: int = 0


@dataclass(frozen=True)
class Kind:
    """One of the JSON formats of this package.

    Attributes:
        name: The format's name, as files give it.
        version: Its newest version.
        most_bytes: The largest size of a file.
        what: What messages call such a file.
        advice: How to make one, for messages.
    """

    name: str
    version: int
    most_bytes: int
    what: str
    advice: str

    def read(self, path: Path) -> bytes:
        """Return the bytes of a JSON file of this format.

        Raises:
            InputError: The file cannot be read, is not of this format, or has a newer version.
        """
        try:
            with open_regular(path) as file:
                data = file.read(self.most_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.check(data if len(data) <= self.most_bytes else b"", str(path))
        return data

    def check(self, data: bytes, place: str) -> None:
        """Check that bytes are a document of this format, in a version that can be read.

        Args:
            data: The document.
            place: Where it came from, for messages.

        Raises:
            InputError: They are not.
        """
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
    """Return a JSON document as a value of a type.

    Args:
        data: The document.
        kind: A type that msgspec knows: a Struct, a dataclass, or a container of them.

    Raises:
        InputError: The document does not fit the type; says what is wrong and where.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(str(error)) from error
