"""Corpus files as streams of bytes, decompressed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from coe_native.errors import InputError
from coe_native.files.regular import open_regular

MOST_EXPANSION = 1000
"""Largest size of a decompressed file, as a multiple of the compressed one."""

_ALWAYS_ALLOWED = 64 << 20
"""Bytes that any file may have when it is decompressed."""

_DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error)


class MissingPackageError(InputError):
    """A file that can be read once a package is installed."""


def _zstandard(file: BinaryIO) -> IO[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise MissingPackageError("reading .zst needs zstandard: pip install zstandard") from error
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file, read_across_frames=True)
    return cast(IO[bytes], reader)


_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")

_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], IO[bytes]]] = {
    b"\x1f\x8b\x08": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(IO[bytes], bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": lambda file: cast(IO[bytes], lzma.LZMAFile(file)),  # noqa: SIM115
    b"\x28\xb5\x2f\xfd": _zstandard,
}
"""By a file's first bytes. Names may be wrong: a browser decompresses some downloads and keeps their names."""

_BZIP2_BLOCK = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
"""What follows ``BZh`` and a digit: a block, or the end of an empty file. Text can begin with the former alone."""


def _decompressor(start: bytes) -> Callable[[BinaryIO], IO[bytes]] | None:
    if start.startswith(b"BZh") and start[4:10] not in _BZIP2_BLOCK:
        return None
    return next((make for magic, make in _DECOMPRESSORS.items() if start.startswith(magic)), None)


def inner_suffix(path: Path) -> str:
    """Return the ending that tells a file's format, in lower case: that before a compressor's."""
    name = Path(path.name.lower())
    return name.with_suffix("").suffix if name.suffix in _SUFFIXES else name.suffix


class _Decompressed(io.RawIOBase):
    """A stream that ends with an error where it expands too much, or is damaged."""

    def __init__(self, path: Path, stream: IO[bytes], most: int) -> None:
        self._path, self._stream, self._left, self._most = path, stream, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:
            if not isinstance(error, _DAMAGED) and type(error).__module__.partition(".")[0] != "zstandard":
                raise
            raise InputError(
                f"{self._path}: cannot be decompressed ({error}); it is damaged or incomplete"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise InputError(f"{self._path}: expands to more than {self._most >> 20} MB; decompress it yourself")
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def open_corpus_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a corpus, and decompress it if it is compressed.

    Raises:
        InputError: It is a Git LFS pointer, no regular file, or cannot be decompressed.
        OSError: The system cannot open or read it.
    """
    with open_regular(path) as file:
        start = file.read(64)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        decompressor = _decompressor(start)
        if decompressor is None:
            yield file
            return
        try:
            stream = decompressor(file)
        except MissingPackageError as error:
            raise MissingPackageError(f"{path}: {error}") from error
        with contextlib.closing(stream):
            limited = _Decompressed(path, stream, max(_ALWAYS_ALLOWED, MOST_EXPANSION * size))
            buffered = io.BufferedReader(limited, 1 << 16)
            if buffered.peek(512)[257:262] == b"ustar":
                raise InputError(f"{path}: is a tar archive; unpack it, and name the directory")
            yield cast(BinaryIO, buffered)
