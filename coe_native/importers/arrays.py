"""Read arrays from NumPy's .npz and from safetensors files, within limits and without running anything."""

from __future__ import annotations

import ast
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
from coe_native.model.safetensors_file import SafetensorsFile

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
        InputError: It is something else, is damaged, too large, or has tensors of a type that NumPy cannot hold.
    """
    tensors = SafetensorsFile.read(path).tensors.values()
    if sum(tensor.n_bytes for tensor in tensors) > MOST_BYTES:
        raise InputError(f"{path}: holds tensors of more than {MOST_BYTES >> 20} MB")
    arrays = {}
    try:
        with open_regular(path) as file:
            for tensor in tensors:
                file.seek(tensor.begin)
                arrays[tensor.name] = _shaped(file.read(tensor.n_bytes), _TYPES[tensor.dtype], tensor.shape)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: has a tensor of an unknown type or a wrong size ({error})") from error
    return arrays


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
