"""The record of surgery in a model's file: in its metadata, or after its data if it was zeroed in place.

Zeroing in place has these steps. Each is on the disk before the next begins, so that an interruption leaves
one of these states:

1. GGUF's magic bytes are replaced, so that no program loads the file.
2. A record of the mask is appended after the data. Nothing is zeroed until it is complete.
3. The dropped experts are zeroed.
4. The magic bytes are restored. The record stays.
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
    """What was done to a model.

    Attributes:
        mode: ``prune`` or ``zero``.
        keep: Experts that the mask keeps in each layer.
        digest: The mask's digest.
        in_place: Whether the parent's own file was changed.
    """

    mode: str
    keep: int
    digest: str
    in_place: bool = False


def read_record(file: GgufFile) -> SurgeryRecord | None:
    """Return what was done to a model, or None if nothing was."""
    mode, keep, digest = (file.get(f"coe.mask.{key}") for key in ("mode", "keep", "digest"))
    known = mode in ("prune", "zero") and isinstance(keep, int) and isinstance(digest, str) and len(digest) < 100
    return _record_after_data(file) or (SurgeryRecord(mode, keep, digest) if known else None)


def _record_after_data(file: GgufFile) -> SurgeryRecord | None:
    """Return the record after the data, which a model has that is being or was zeroed in place.

    Any other bytes there are ignored.
    """
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
    """Mark a model as being changed while the block runs, and as finished if the block ends without an error.

    Args:
        file: The model's file, or the first one of a split model, open and locked.
        record: What to record; None if the file has the record already.

    Raises:
        OSError: The record cannot be written. The file is then as it was before.
    """
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
