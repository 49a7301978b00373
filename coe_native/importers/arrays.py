"""Read arrays from NumPy's .npz and from safetensors files, within limits and without running anything."""

from __future__ import annotations

import ast
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.regular import open_regular
from coe_native.importers.torch_file import BFLOAT16, MOST_BYTES, from_bfloat16

_MOST_HEADER = 1 << 20
_TYPES = {
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    "BOOL": "?",
    "BF16": BFLOAT16,
}
"""NumPy's types by the names in safetensors files."""


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that numpy.savez has written.

    Raises:
        InputError: It is something else, is damaged, too large, or holds Python objects.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > MOST_BYTES:
                raise InputError(f"{path}: holds arrays of more than {MOST_BYTES >> 20} MB")
            return {info.filename.removesuffix(".npy"): _npy(archive.read(info)) for info in members}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:  # zipfile may raise anything for a damaged archive
        raise InputError(f"{path}: is not an .npz file of numpy.savez ({error}); save it again") from error


def _npy(data: bytes) -> NDArray[Any]:
    """Return the array of a .npy file. Its header is a Python literal of three fields."""
    if data[:6] != b"\x93NUMPY":
        raise ValueError("a member is not an array")
    wide = data[6] > 1
    (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
    start = 8 + (4 if wide else 2)
    if length > 10_000:
        raise ValueError("a header is too long")
    header = ast.literal_eval(data[start : start + length].decode("latin-1"))
    return _shaped(
        data[start + length :], header["descr"], header["shape"], fortran=header["fortran_order"] is True
    )


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file.

    Raises:
        InputError: It is something else, is damaged, or too large.
    """
    try:
        with open_regular(path) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, struct.error, RecursionError) as error:
        raise InputError(f"{path}: is not a safetensors file ({error})") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{path}: holds tensors of more than {MOST_BYTES >> 20} MB")
    try:
        return {
            str(name): _shaped(data[slice(*entry["data_offsets"])], _TYPES[entry["dtype"]], tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: has a tensor of an unknown type or a wrong size ({error})") from error


def _shaped(data: bytes, kind: Any, shape: Any, *, fortran: bool = False) -> NDArray[Any]:
    """Return bytes as an array of a shape.

    Raises:
        ValueError: They are too few, or of Python objects.
    """
    dtype = np.dtype("<u2" if kind == BFLOAT16 else kind)
    if dtype.hasobject or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("it is not an array of numbers")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > len(data):
        raise ValueError("it ends before its last number")
    values = np.frombuffer(data[:n_bytes], dtype).reshape(shape, order="F" if fortran else "C")
    return from_bfloat16(values) if kind == BFLOAT16 else values
