"""JSON from files, checked against the types that it is read into."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from coe_native.errors import InputError

Value = TypeVar("Value")


def decode(data: bytes | str, kind: type[Value]) -> Value:
    """A document as a value of a type that msgspec knows: a Struct, a dataclass, or a container of such. Raises
    InputError, saying what is wrong and where."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InputError(str(error)) from error
