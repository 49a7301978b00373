"""What a model's file says was done to it: in its metadata, or, where it was zeroed in place, behind its data.

Zeroing in place goes through these states, each on the disk before the next begins, so that no interruption can
pass for another one:

1. GGUF's magic bytes give way to others: no program takes the file for a model any more.
2. A record, by which mask it is being zeroed, is added behind the data. Until it is whole, nothing is zeroed.
3. The dropped experts are zeroed.
4. The magic bytes come back. The record stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from io import FileIO

import msgspec

from coe_native.errors import InputError
from coe_native.files import typed_json
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import MAGIC, UNDER_SURGERY, GgufFile

_END = b"coe-zero"
_LENGTH_BYTES = 4
_MOST_BYTES = 1 << 10


class SurgeryRecord(msgspec.Struct, frozen=True):
    """`mode`: ``prune`` or ``zero``; by the mask with this `digest`, which keeps `keep` experts in a layer.
    `in_place`: the file was a model before, and has been changed."""

    mode: str
    keep: int
    digest: str
    in_place: bool = False


def read_record(file: GgufFile) -> SurgeryRecord | None:
    """What was done to a model, or None where that is nothing."""
    mode, keep, digest = (file.get(f"coe.mask.{key}") for key in ("mode", "keep", "digest"))
    known = mode in ("prune", "zero") and isinstance(keep, int) and isinstance(digest, str) and len(digest) < 100
    return _behind_the_data(file) or (SurgeryRecord(mode, keep, digest) if known else None)


def _behind_the_data(file: GgufFile) -> SurgeryRecord | None:
    """The record of a model that is being, or was, zeroed in place; what else may stand there is nobody's."""
    fixed = len(_END) + _LENGTH_BYTES
    room = file.size - file.data_end
    if room <= fixed:
        return None
    with file.open() as opened:
        end = read_exactly(opened, file.size - fixed, fixed)
        n_bytes = int.from_bytes(end[:_LENGTH_BYTES], "little")
        if not end.endswith(_END) or n_bytes > min(room - fixed, _MOST_BYTES):
            return None
        text = read_exactly(opened, file.size - fixed - n_bytes, n_bytes)
    try:
        return typed_json.decode(text, SurgeryRecord)
    except InputError:
        return None


@contextlib.contextmanager
def under_surgery(file: FileIO, record: SurgeryRecord | None) -> Iterator[None]:
    """Marks a model (the first file of a split one), which is open and locked, while the block changes it, and as
    done if that ends well. `record`: what is to be recorded, or None where that has been done before. Raises
    OSError where the file can't be written; then it is as it was."""
    magic = file.read(len(MAGIC))
    _write_magic(file, UNDER_SURGERY)
    if record is not None:
        _append(file, record, magic)
    yield
    _write_magic(file, MAGIC)


def _append(file: FileIO, record: SurgeryRecord, magic: bytes) -> None:
    text = msgspec.json.encode(record)
    size = file.seek(0, os.SEEK_END)
    try:
        _write(file, text + len(text).to_bytes(_LENGTH_BYTES, "little") + _END)
    except OSError:
        file.truncate(size)
        _write_magic(file, magic)
        raise


def _write_magic(file: FileIO, magic: bytes) -> None:
    file.seek(0)
    _write(file, magic)


def _write(file: FileIO, data: bytes) -> None:
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())
