"""JSON from files, checked against the types that it is read into."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from coe_native.errors import InputError

Value = TypeVar("Value")


class _Head(msgspec.Struct):
    """What says whether a file is of a format and version that we can read."""

    format: str = ""
    version: int = 0


def read_document(path: Path, *, kind: str, version: int, most_bytes: int, what: str, advice: str) -> bytes:
    """The bytes of a JSON file of one of our formats. Raises InputError for a file that can't be read or is none
    (`what` it should be, and `advice` on how to make one), and for a newer version."""
    try:
        data = path.read_bytes() if path.stat().st_size <= most_bytes else b""
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        head = decode(data, _Head)
    except InputError:
        head = _Head()
    if head.format != kind:
        raise InputError(f"{path}: is not a {what}; {advice}")
    if not 1 <= head.version <= version:
        raise InputError(f"{path}: has {what} version {head.version}; this coe-native reads up to {version}")
    return data


def decode(data: bytes | str, kind: type[Value]) -> Value:
    """A document as a value of a type that msgspec knows: a Struct, a dataclass, or a container of such. Raises
    InputError, saying what is wrong and where."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(str(error)) from error
