"""Read a GGUF file: its header, and its data as bytes. Nothing here knows about experts."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
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
"""Replaces GGUF's magic bytes in a file that is being changed in place, so that no program loads it."""

_SCALARS = {
    "U8": "B", "I8": "b", "U16": "H", "I16": "h", "U32": "I", "I32": "i", "F32": "f", "BOOL": "?",
    "U64": "Q", "I64": "q", "F64": "d",
}  # fmt: skip

Value = int | float | bool | str | list[Any]


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: Its name.
        shape: Its dimensions in GGUF's order, the fastest first.
        type: Its ggml type.
        offset: Its first byte, from the start of the file.
        n_bytes: Its size.
        file: The file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int
    file: GgufFile

    @property
    def type_name(self) -> str:
        """Return ggml's name of its type in upper case, such as ``Q8_0``."""
        return core.type_name(self.type).upper()


class GgufFile:
    """A GGUF file whose header has been read.

    Attributes:
        path: The file.
        size: Its size in bytes.
        under_surgery: Whether it is being changed in place.
        native: The file as the C++ core has it.
        header: The parsed header.
        tensors: Its tensors, in the file's order.

    Raises:
        InputError: The file is not GGUF, is damaged or truncated, or is being changed in place (unless
            `surgery_goes_on`, for the caller who finishes that).
    """

    def __init__(self, path: Path, *, surgery_goes_on: bool = False) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._identity = _identity(os.fstat(file.fileno()))
                self.size = file.seek(0, 2)
                if self.size == 0:
                    raise InputError(f"{path}: is empty")
                # Pages that are written to are private copies: the file does not change.
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
                f"{path}: `coe-native zero --in-place` has not finished changing it; run the same command again"
            )
        self.tensors = tuple(
            Tensor(
                name=tensor.name,
                shape=tuple(tensor.shape),
                type=tensor.type,
                offset=tensor.offset,
                n_bytes=tensor.n_bytes,
                file=self,
            )
            for tensor in self.header.tensors
        )
        self._values: dict[str, Value] = {}

    @cached_property
    def _entries(self) -> dict[str, core.GgufEntry]:
        return {entry.key: entry for entry in self.header.entries}

    @property
    def keys(self) -> list[str]:
        """Return the metadata keys, in the file's order."""
        return list(self._entries)

    def raw_entry(self, key: str) -> bytes:
        """Return the bytes of a metadata entry, with its key and type."""
        entry = self._entries[key]
        return self.native.header_bytes(entry.begin, entry.end)

    def shortened_entry(self, key: str, count: int) -> bytes:
        """Return the bytes of the metadata entry of an array, with its first `count` numbers only."""
        entry = self._entries[key]
        size = (entry.end - entry.value) // entry.count
        head = self.native.header_bytes(entry.begin, entry.value - 8)
        return head + struct.pack("<Q", count) + self.native.header_bytes(entry.value, entry.value + count * size)

    def get(self, key: str, default: Any = None, *, most: int = 1 << 16) -> Any:
        """Return a metadata value: a number, a bool, a text, or a list of them.

        Args:
            key: The key.
            default: What to return if the file does not have the key.
            most: The longest list that is read; longer ones would take much memory.

        Raises:
            InputError: The value is a longer list.
        """
        entry = self._entries.get(key)
        if entry is None:
            return default
        if key not in self._values:
            if entry.count > most:
                raise InputError(f"{self.path}: has a list of {entry.count} values at {key}; it is damaged")
            self._values[key] = self._decode(entry)
        return self._values[key]

    def numbers_at(self, key: str) -> int | None:
        """Return the length of a metadata value, or None if it is not a list of numbers."""
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
        """Return all bytes before the data."""
        return self.native.header_bytes(0, self.header.data_offset)

    @property
    def data_end(self) -> int:
        """Return the offset of the last tensor's end in the file. Padding may follow."""
        return max((t.offset + t.n_bytes for t in self.tensors), default=self.header.data_offset)

    @property
    def holds_another(self) -> bool:
        """Return whether another GGUF file follows in this one, which is a shard: shards were joined as bytes."""
        alignment = self.header.alignment
        end = -(-self.data_end // alignment) * alignment
        if self.get("split.count", 0) in (0, 1) or self.size < end + len(MAGIC):
            return False
        with self.open() as file:
            file.seek(end)
            return file.read(len(MAGIC)) == MAGIC

    def open(self) -> BinaryIO:
        """Open the file for reading.

        Raises:
            CoeError: It has changed since its header was read.
        """
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
        """Check that an opened file is the one whose header was read, and has not changed since.

        Raises:
            CoeError: It is another file, or has changed.
        """
        self._check_identity(os.fstat(file.fileno()))

    def check_same(self, file: BinaryIO | FileIO) -> None:
        """Check that the path still leads to an opened file, which may have been written to.

        Raises:
            CoeError: Another file has replaced it.
        """
        try:
            same = os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except OSError:
            same = False
        if not same:
            raise CoeError(
                f"{self.path}: was replaced by another file meanwhile; the new file has not been changed"
            )

    def check_unchanged(self) -> None:
        """Check that the file has not changed since its header was read.

        Raises:
            CoeError: It was written to or replaced, or cannot be read.
        """
        try:
            self._check_identity(self.path.stat())
        except OSError as error:
            raise CoeError(f"{self.path}: cannot be read any more: {error.strerror or error}") from error

    def _check_identity(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise CoeError(
                f"{self.path}: has changed while it was read; run this again when no program writes to it"
            )


def begins_like_gguf(path: Path) -> bool:
    """Return whether a file begins with GGUF's magic bytes, or with those of a file that is being changed.

    Raises:
        InputError: The file cannot be read.
    """
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


def encode_entry(key: str, value: float | str | Sequence[str], number: str = "U32") -> bytes:
    """Return the bytes of a metadata entry.

    Args:
        key: The key.
        value: A text, texts or a number. A float has single precision.
        number: GGUF's type of an integer.
    """
    head = _encode_text(key)
    if isinstance(value, str):
        return head + struct.pack("<I", int(core.GgufType.STRING)) + _encode_text(value)
    if isinstance(value, float):
        return head + struct.pack("<If", int(core.GgufType.F32), value)
    if not isinstance(value, int):
        array = struct.pack("<IIQ", int(core.GgufType.ARRAY), int(core.GgufType.STRING), len(value))
        return head + array + b"".join(map(_encode_text, value))
    return head + struct.pack(f"<I{_SCALARS[number]}", int(getattr(core.GgufType, number)), value)


def _encode_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def encode_tensor(name: str, shape: tuple[int, ...], ggml_type: int, offset: int) -> bytes:
    """Return a tensor's entry in the header.

    Args:
        name: The tensor's name.
        shape: Its dimensions in GGUF's order.
        ggml_type: Its type.
        offset: Its first byte, from the start of the data.
    """
    text = name.encode()
    return (
        struct.pack("<Q", len(text))
        + text
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, ggml_type, offset)
    )


def encode_header(
    version: int,
    entries: Sequence[bytes],
    tensors: Sequence[tuple[str, tuple[int, ...], int, int]],
    alignment: int,
) -> bytes:
    """Return all bytes before the data, with padding.

    Args:
        version: GGUF's version.
        entries: The metadata entries.
        tensors: The name, the dimensions, the type and the size in bytes of each tensor.
        alignment: Bytes of which each tensor starts at a multiple.
    """
    offsets, _ = tensor_layout([n_bytes for *_, n_bytes in tensors], alignment)
    infos = [
        encode_tensor(name, shape, ggml_type, offset)
        for (name, shape, ggml_type, _), offset in zip(tensors, offsets, strict=True)
    ]
    counts = len(infos).to_bytes(8, "little") + len(entries).to_bytes(8, "little")
    head = MAGIC + version.to_bytes(4, "little") + counts + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment)


def tensor_layout(sizes: Iterable[int], alignment: int) -> tuple[list[int], int]:
    """Return each tensor's offset from the start of the data, and the size of the data with padding.

    Args:
        sizes: The tensors' sizes in bytes.
        alignment: Bytes of which each tensor starts at a multiple.
    """
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // alignment) * alignment
    return offsets, end
