"""A GGUF file's header, and its data by the byte. Reading only; nothing here knows about experts."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.files.regular import open_regular

MAGIC = b"GGUF"
UNDER_SURGERY = b"COEZ"
"""Stands instead of GGUF's magic bytes in a file that is being changed in place: no program takes it for good."""

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
    stands before the data. `under_surgery`: whether it is being changed in place; then it is no good to anybody
    but who says, with `surgery_goes_on`, that he will finish that."""

    def __init__(self, path: Path, *, surgery_goes_on: bool = False) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._identity = _identity(os.fstat(file.fileno()))
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise InputError(f"{path}: is empty")
                # Pages that are written to become our own: the file stays as it is.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
                    self.under_surgery = mapped[:4] == UNDER_SURGERY
                    if self.under_surgery:
                        mapped[:4] = MAGIC
                    self.native = core.GgufFile(os.fsencode(path), mapped, self.size)
                    self.header = self.native.header
        except core.GgufError as error:
            raise InputError(f"{path}: {error}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        if self.under_surgery and not surgery_goes_on:
            raise InputError(
                f"{path}: `coe-native zero --in-place` has begun to change it, and not come to its end; run the "
                "same again"
            )
        self.tensors = tuple(
            Tensor(t.name, tuple(t.shape), t.type, t.offset, t.n_bytes, self) for t in self.header.tensors
        )
        self._values: dict[str, Value] = {}

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
        return self.native.header_bytes(entry.begin, entry.end)

    def shortened_entry(self, key: str, count: int) -> bytes:
        """The bytes of an array's entry with its first `count` numbers only."""
        entry = self._entries[key]
        size = (entry.end - entry.value) // entry.count
        head = self.native.header_bytes(entry.begin, entry.value - 8)
        return head + struct.pack("<Q", count) + self.native.header_bytes(entry.value, entry.value + count * size)

    def get(self, key: str, default: Any = None, *, most: int = 1 << 16) -> Any:
        """A metadata value: number, bool, text, or a list of them. Raises InputError for a list of more than
        `most` values, which would take much memory."""
        entry = self._entries.get(key)
        if entry is None:
            return default
        if key not in self._values:
            if entry.count > most:
                raise InputError(f"{self.path}: holds a list of {entry.count} values at {key}; it is damaged")
            self._values[key] = self._decode(entry)
        return self._values[key]

    def numbers_at(self, key: str) -> int | None:
        """How many numbers a metadata value lists; None where it is no list of numbers."""
        entry = self._entries[key]
        is_list = entry.type.name == "ARRAY" and entry.element_type.name != "STRING"
        return entry.count if is_list else None

    def _decode(self, entry: core.GgufEntry) -> Value:
        raw = self.native.header_bytes(entry.value, entry.end)
        if entry.element_type.name == "STRING":
            texts = list(_strings(raw, entry.count))
            return texts if entry.type.name == "ARRAY" else texts[0]
        values = struct.unpack(f"<{entry.count}{_SCALARS[entry.element_type.name]}", raw)
        return list(values) if entry.type.name == "ARRAY" else values[0]

    @cached_property
    def header_bytes(self) -> bytes:
        """Return everything before the data."""
        return self.native.header_bytes(0, self.header.data_offset)

    @property
    def data_end(self) -> int:
        """Where the last tensor ends, counted from the start of the file. Padding may follow, or not."""
        return max((t.offset + t.n_bytes for t in self.tensors), default=self.header.data_offset)

    def open(self) -> BinaryIO:
        """The file's bytes, for reading. Raises CoeError where they are not those of the header any more."""
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        try:
            self.check_opened(file)
        except CoeError:
            file.close()
            raise
        return file

    def check_opened(self, file: BinaryIO | FileIO) -> None:
        """Raise CoeError where an opened file is not the one whose header was read, or has changed since."""
        self._check_identity(os.fstat(file.fileno()))

    def check_same(self, file: BinaryIO | FileIO) -> None:
        """Raise CoeError where another file has taken the place of an opened one, whatever was written to it."""
        try:
            same = os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            same = False
        if not same:
            raise CoeError(f"{self.path}: was replaced by another file meanwhile, which has not been changed")

    def check_unchanged(self) -> None:
        """Raises CoeError where somebody has written to the file, or replaced it, since its header was read."""
        try:
            self._check_identity(self.path.stat())
        except OSError as error:
            raise CoeError(f"{self.path}: cannot be read any more: {error.strerror or error}") from error

    def _check_identity(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise CoeError(
                f"{self.path}: has changed while it was read; wait until nobody writes to it, and run this again"
            )


def begins_like_gguf(path: Path) -> bool:
    """Whether a file is one to look at as GGUF, whatever follows. Raises InputError where it can't be read."""
    try:
        if not path.is_file():
            return False
        with open_regular(path) as file:
            return file.read(len(MAGIC)) in (MAGIC, UNDER_SURGERY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _strings(raw: bytes, count: int) -> Iterator[str]:
    position = 0
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, position)
        position += 8
        yield raw[position : position + length].decode("utf-8", errors="replace")
        position += length


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
