"""A GGUF file's header, and its data by the byte. Reading only; nothing here knows about experts."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from coe_native._native import core
from coe_native.errors import InputError

CHUNK = 4 << 20
"""Bytes read at once, by each thread: large enough to be fast, small enough for a processor's cache."""

_SCALARS = {
    "U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "F32": "f", "BOOL": "?",
    "U64": "Q", "I64": "q", "F64": "d",
}  # fmt: skip

Value = int | float | bool | str | list[Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `shape` is in GGUF's order (fastest dimension first), `offset` counts from the
    start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int
    file: GgufFile

    @property
    def type_name(self) -> str:
        return core.type_name(self.type).upper()


class GgufFile:
    """An opened GGUF file. Raises InputError where it is none, is damaged or truncated. `header_bytes`: all that
    stands before the data."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise InputError(f"{path}: is empty")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    self.header = core.read_gguf_header(mapped, self.size)
                    self.header_bytes = mapped[: min(self.header.data_offset, self.size)]
        except core.GgufError as error:
            raise InputError(f"{path}: {error}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        self.tensors = tuple(
            Tensor(t.name, tuple(t.shape), t.type, t.offset, t.n_bytes, self) for t in self.header.tensors
        )

    @cached_property
    def _entries(self) -> dict[str, core.GgufEntry]:
        return {entry.key: entry for entry in self.header.entries}

    @property
    def keys(self) -> list[str]:
        """The metadata keys, in the file's order."""
        return list(self._entries)

    def raw_entry(self, key: str) -> bytes:
        """The bytes of a whole metadata entry, key and type included."""
        entry = self._entries[key]
        return self.header_bytes[entry.begin : entry.end]

    def shortened_entry(self, key: str, count: int) -> bytes:
        """The bytes of an array's entry with its first `count` numbers only."""
        entry = self._entries[key]
        size = (entry.end - entry.value) // entry.count
        head = self.header_bytes[entry.begin : entry.value - 8]
        return head + struct.pack("<Q", count) + self.header_bytes[entry.value : entry.value + count * size]

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value: number, bool, text, or a list of them."""
        entry = self._entries.get(key)
        return default if entry is None else self._decode(entry)

    def _decode(self, entry: core.GgufEntry) -> Value:
        raw = self.header_bytes[entry.value : entry.end]
        if entry.element_type.name == "STRING":
            texts = list(_strings(raw, entry.count))
            return texts if entry.type.name == "ARRAY" else texts[0]
        values = struct.unpack(f"<{entry.count}{_SCALARS[entry.element_type.name]}", raw)
        return list(values) if entry.type.name == "ARRAY" else values[0]

    def open(self) -> BinaryIO:
        """The file's bytes, for reading."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error


def _strings(raw: bytes, count: int) -> Iterator[str]:
    position = 0
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, position)
        position += 8
        yield raw[position : position + length].decode("utf-8", errors="replace")
        position += length


_seek_and_read = threading.Lock()


def _read_at(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    if hasattr(os, "pread"):
        data = os.pread(file.fileno(), n_bytes, offset)
        while 0 < len(data) < n_bytes and (
            more := os.pread(file.fileno(), n_bytes - len(data), offset + len(data))
        ):
            data += more
        return data
    with _seek_and_read:
        file.seek(offset)
        return file.read(n_bytes)


def read_exactly(file: BinaryIO, offset: int, n_bytes: int) -> bytes:
    """`n_bytes` bytes from `offset`, in any thread; raises InputError where the file has become shorter."""
    try:
        data = _read_at(file, offset, n_bytes)
    except OSError as error:
        raise InputError(f"{file.name}: cannot be read: {error.strerror or error}") from error
    if len(data) != n_bytes:
        raise InputError(f"{file.name}: ends before byte {offset + n_bytes}; is it still being written?")
    return data


def encode_entry(key: str, value: int | str, number: str = "U32") -> bytes:
    """A metadata entry's bytes: text, or a number of GGUF's type `number`."""
    name = key.encode()
    head = struct.pack("<Q", len(name)) + name
    if isinstance(value, str):
        text = value.encode()
        return head + struct.pack("<IQ", int(core.GgufType.STRING), len(text)) + text
    return head + struct.pack(f"<I{_SCALARS[number]}", int(getattr(core.GgufType, number)), value)


def encode_tensor(name: str, shape: tuple[int, ...], ggml_type: int, offset: int) -> bytes:
    """A tensor's entry in the header; `offset` counts from the start of the data."""
    text = name.encode()
    return (
        struct.pack("<Q", len(text))
        + text
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, ggml_type, offset)
    )
