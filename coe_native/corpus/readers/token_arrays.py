"""Token ids that numpy.save has written: an array of one document, or of one in each row."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.documents import Document
from coe_native.corpus.long_content import LONG, PIECE, LongTokens
from coe_native.corpus.readers.decoding import Found
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.errors import InputError
from coe_native.files.regular import unchanged_since_now

_MOST_ROWS = 1 << 20
"""A document takes about 300 bytes beside its tokens."""


@dataclass(frozen=True)
class _Header:
    """What the header of a .npy file says.

    Attributes:
        shape: Rows and columns.
        by_columns: Whether the values of a column are stored together, and not those of a row.
        dtype: The type of the values.
        start: The position of the first value in the file.
    """

    shape: tuple[int, int]
    by_columns: bool
    dtype: np.dtype[Any]
    start: int


def read_token_array(path: Path) -> Iterator[Found]:
    """Yield the document of each row. One with many tokens is read when it is needed."""
    check = unchanged_since_now(path)
    try:
        header = _read_header(path)
    except InputError as error:
        yield error
        return
    n_rows, n_columns = header.shape
    if n_columns >= LONG and not header.by_columns:
        for row in range(n_rows):
            pieces = partial(_pieces, path, header, row, check)
            yield Document(f"{path}[{row}]", LongTokens(n_columns, pieces))
        return
    with open_corpus_file(path) as file:
        for row, values in enumerate(_rows(file, header)):
            yield Document(f"{path}[{row}]", tuple(values.tolist()))


def _rows(file: BinaryIO, header: _Header) -> Iterator[NDArray[Any]]:
    n_rows, n_columns = header.shape
    n_bytes = n_columns * header.dtype.itemsize
    file.seek(header.start)
    if header.by_columns:
        yield from np.frombuffer(file.read(n_rows * n_bytes), header.dtype).reshape(header.shape, order="F")
        return
    for _ in range(n_rows if n_bytes else 0):  # a header can claim billions of rows without tokens
        yield np.frombuffer(file.read(n_bytes), header.dtype)


def _pieces(path: Path, header: _Header, row: int, check: Callable[[], None]) -> Iterator[NDArray[Any]]:
    """Yield the tokens of a long row in pieces."""
    check()
    n_columns, size = header.shape[1], header.dtype.itemsize
    with open_corpus_file(path) as file:
        file.seek(header.start + row * n_columns * size)
        for at in range(0, n_columns, PIECE):
            n_tokens = min(PIECE, n_columns - at)
            data = file.read(n_tokens * size)
            if len(data) < n_tokens * size:
                raise InputError(f"{path}: ends before its last token; it is damaged or incomplete")
            yield np.frombuffer(data, header.dtype)
    check()


def _read_header(path: Path) -> _Header:
    """Return what a .npy file says of its array.

    Unlike numpy.load, this never unpickles, reads no archives, and trusts no size that the file does not have.
    """
    if path.suffix.lower() != ".npy":
        raise InputError(f"{path}: is compressed, and token ids are read uncompressed only; decompress it")
    with open_corpus_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers of old versions of Python
        try:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, by_columns, dtype = header(file)
        except OSError:
            raise
        except Exception as error:  # the header is a Python literal, and parsing one fails in many ways
            raise InputError(
                f"{path}: is not an array of token ids ({error}); write it with numpy.save"
            ) from error
        if len(shape) not in (1, 2) or dtype.kind not in "iu":
            raise InputError(
                f"{path}: is a {len(shape)}-D array of {dtype}; token ids must be a 1-D or 2-D array of integers"
            )
        if len(shape) == 2 and shape[0] > _MOST_ROWS:
            raise InputError(f"{path}: has {shape[0]} rows; split it into files of at most {_MOST_ROWS}")
        start = file.tell()
        if min(shape) < 0 or math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size - start:
            raise InputError(f"{path}: ends before its last token; it is damaged or incomplete")
    n_rows, n_columns = shape if len(shape) == 2 else (1, *shape)
    return _Header((n_rows, n_columns), by_columns and n_rows > 1, dtype, start)
