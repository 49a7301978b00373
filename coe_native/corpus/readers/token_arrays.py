"""Token ids that numpy.save has written: an array of one document, or of one in each row."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.documents import Document
from coe_native.corpus.readers.decoding import Found
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.errors import InputError

_MOST_ROWS = 1 << 20
"""A document takes about 300 bytes beside its tokens."""


def read_token_array(path: Path) -> Iterator[Found]:
    """Yield the document of each row."""
    try:
        array = _read_array(path)
    except InputError as error:
        yield error
        return
    for number, row in enumerate(np.atleast_2d(array)):
        yield Document(f"{path}[{number}]", tuple(row.tolist()))


def _read_array(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file.

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
        n_bytes = math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or n_bytes > os.fstat(file.fileno()).st_size - file.tell():
            raise InputError(f"{path}: ends before its last token; it is damaged or incomplete")
        values = np.frombuffer(file.read(n_bytes), dtype)
    # A header can claim billions of rows without tokens.
    return values.reshape(shape, order="F" if by_columns else "C") if n_bytes else np.empty(0, dtype)
