"""Safetensors files: a JSON header, which is checked here, and the bytes of the tensors."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from coe_native.errors import InputError, printable
from coe_native.files.regular import open_regular

_MOST_HEADER = 100_000_000
"""Most bytes of a header, the format's own limit."""

_MOST_DIMENSIONS = 16

_BITS = {
    **{f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": bits for bits in (16, 32, 64)},
    **{f"F8_{kind}": 8 for kind in ("E4M3", "E5M2", "E8M0", "E4M3FNUZ", "E5M2FNUZ")},
    **{"BOOL": 8, "BF16": 16, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of a value, by the format's names of types."""

Size = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a file.

    Attributes:
        name: Its name.
        dtype: The format's name of its type, such as ``BF16``.
        shape: Its shape, the slowest dimension first.
        begin: Where its bytes begin in the file.
        n_bytes: Their number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    n_bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header has been read and checked.

    Attributes:
        path: The file.
        metadata: Its texts by name.
        tensors: Its tensors by name, in the order of their bytes.
    """

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def read(cls, path: str | Path) -> SafetensorsFile:
        """Read a file's header.

        Raises:
            InputError: The file cannot be read, or is not a safetensors file whose tensors fill it.
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                start = file.read(8)
                size = file.seek(0, 2)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
                if length > min(_MOST_HEADER, size - 8):
                    raise InputError(f"{path}: is not a safetensors file, or is cut off; download it again")
                file.seek(8)
                header = file.read(length)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            return cls._checked(path, header, size - 8 - length)
        except (msgspec.MsgspecError, InputError, RecursionError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path}: its header is damaged: {printable(str(error), 200)}; download it again"
            ) from error

    @classmethod
    def _checked(cls, path: Path, header: bytes, n_bytes: int) -> SafetensorsFile:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        texts = entries.pop("__metadata__", None)
        metadata = {} if texts is None else msgspec.json.decode(texts, type=dict[str, str])
        start = 8 + len(header)
        tensors = sorted(
            (
                _tensor(name, msgspec.json.decode(entry, type=_Entry), start, n_bytes)
                for name, entry in entries.items()
            ),
            key=lambda tensor: (tensor.begin, tensor.n_bytes),
        )
        end = start
        for tensor in tensors:
            if tensor.begin != end:
                raise InputError(f"there are bytes before {tensor.name} that belong to no tensor, or to two")
            end += tensor.n_bytes
        if end != start + n_bytes:
            raise InputError("there are bytes at the end that belong to no tensor")
        return cls(path, metadata, {tensor.name: tensor for tensor in tensors})


def _tensor(name: str, entry: _Entry, start: int, n_bytes: int) -> StoredTensor:
    begin, end = entry.data_offsets
    if entry.dtype not in _BITS:
        raise InputError(f"{name} has the unknown type {entry.dtype}")
    if not begin <= end <= n_bytes:
        raise InputError(f"{name} is outside the file")
    if len(entry.shape) > _MOST_DIMENSIONS:
        raise InputError(f"{name} has {len(entry.shape)} dimensions")
    if 8 * (end - begin) != math.prod(entry.shape) * _BITS[entry.dtype]:
        raise InputError(f"{name} has {end - begin} bytes, which is not the size of its shape")
    return StoredTensor(name, entry.dtype, tuple(entry.shape), start + begin, end - begin)
