"""Read tensors from PyTorch's files, without PyTorch and without running the pickle in them.

A ``.pt`` file of torch.save (since 1.6) is a zip archive: a pickle that describes objects, and a file of
bytes for each storage. pickletools lists the pickle's instructions. Those that make plain containers and
tensors are executed here, on a stack of our own. No class is looked up, and nothing is called.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.regular import open_regular

MOST_BYTES = 1 << 28
"""Most bytes of all tensors of a file. Counts of 100 layers with 512 experts and eight ranks have 4 MB."""

_MOST_PICKLE = 1 << 22
"""Most bytes of a pickle. A megabyte takes seconds; the pickle of a thousand tensors has 0.1 MB."""

_MOST_DIMENSIONS = 8
_LONGEST_NAME = 200

BFLOAT16 = "bfloat16"
"""Stands for a type that NumPy does not have."""

_DTYPES = {
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
}


@dataclass(frozen=True)
class _Name:
    """The name of an object that a pickle would import. Nothing is imported."""

    text: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


def from_bfloat16(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the upper halves of 32-bit floats as these floats."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def read_torch(path: str | Path) -> Any:
    """Return the contents of a torch.save file.

    Returns:
        Tensors as NumPy arrays, texts and numbers, in lists, tuples and dicts.

    Raises:
        InputError: The file is of another kind, is damaged, or holds other objects.
    """
    path = Path(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _Reader(archive).read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # zipfile may raise anything for a damaged archive
        raise InputError(
            f"{path}: is not a torch.save file, or is from before PyTorch 1.6; save it with a newer one ({error})"
        ) from error


class _Reader:
    """An archive, and the stack of the pickle in it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._sizes = {info.filename: info.file_size for info in archive.infolist()}
        self._left = MOST_BYTES
        pickles = [name for name in self._sizes if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise InputError("is a zip archive, but not one of torch.save")
        self._root = pickles[0].removesuffix("data.pkl")
        self._stack: list[Any] = []
        # The stacks before each mark whose items have not been collected yet.
        self._waiting: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return what the pickle describes."""
        if self._member("byteorder", 16, b"little").strip() != b"little":
            raise InputError("was written on a machine with another byte order")
        pickle = self._member("data.pkl", _MOST_PICKLE)
        try:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(pickle)):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._execute(opcode.name, argument)
        except InputError:
            raise
        except Exception as error:  # any kind: too few items on the stack, a list instead of a dict
            raise InputError(f"is damaged: its pickle is invalid ({error})") from error
        raise InputError("is damaged: its pickle has no end")

    def _member(self, name: str, most: int, default: bytes | None = None) -> bytes:
        full = self._root + name
        if full not in self._sizes:
            if default is not None:
                return default
            raise InputError(f"is damaged: it has no {name}")
        if self._archive.getinfo(full).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"is compressed in a way that torch.save does not use ({name})")
        if self._sizes[full] > most:
            raise InputError(f"has {self._sizes[full]} bytes in {name}, which is more than it can need")
        try:
            with self._archive.open(full) as file:
                return file.read(most)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise InputError(f"is damaged: {name} cannot be unpacked ({error})") from error

    def _execute(self, name: str, argument: Any) -> None:
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self._stack.append(argument)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self._stack.append(_Name(argument.replace(" ", ".")))
        elif name in _STEPS:
            _STEPS[name](self)
        else:
            raise InputError(f"holds something that is not a tensor (its pickle uses {name})")

    def pop_to_mark(self) -> list[Any]:
        """Remove and return all items above the last mark."""
        items, self._stack = self._stack, self._waiting.pop()
        return items

    def mark(self) -> None:
        """Set a mark."""
        self._waiting.append(self._stack)
        self._stack = []

    def pop(self) -> Any:
        """Remove and return the top item."""
        return self._stack.pop()

    def push(self, value: Any) -> None:
        """Put an item on top."""
        self._stack.append(value)

    def last(self, kind: type) -> Any:
        """Return the top item, which must be of this kind."""
        if not isinstance(self._stack[-1], kind):
            raise InputError("is damaged: its pickle is invalid")
        return self._stack[-1]

    def reduce(self) -> None:
        """Do what one of the few allowed calls would do: make a tensor or an empty dict."""
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise InputError("holds something that is not a tensor")
        if function.text == "collections.OrderedDict" and not arguments:
            self._stack.append({})
        elif function.text == "torch._utils._rebuild_tensor_v2":
            self._stack.append(self._tensor(*arguments[:4]))
        elif function.text == "torch._utils._rebuild_parameter":
            self._stack.append(arguments[0])
        else:
            raise InputError(f"holds something that is not a tensor: {function.text[:80]}")

    def storage(self) -> None:
        """Read a persistent id: a storage, given by its type and its file in the archive."""
        kind, name, key, *_ = self._stack.pop()
        dtype = _DTYPES.get(name.text.removeprefix("torch.")) if isinstance(name, _Name) else None
        if kind != "storage" or dtype is None or not isinstance(key, str) or "/" in key or len(key) > 20:
            raise InputError("holds a tensor of an unsupported type")
        self._stack.append(_Storage(dtype, key))

    def _tensor(
        self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> NDArray[Any]:
        numbers = (offset, *size, *stride)
        if (
            not isinstance(storage, _Storage)
            or len(size) != len(stride)
            or len(size) > _MOST_DIMENSIONS
            or not all(type(number) is int and 0 <= number < 2**40 for number in numbers)
        ):
            raise InputError("is damaged: a tensor has an impossible shape")
        data = self._member(f"data/{storage.key}", self._left)
        dtype = np.dtype("<u2" if storage.dtype == BFLOAT16 else storage.dtype)
        values = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
        # With a stride of 0, a few bytes are many elements.
        self._left -= len(data) + math.prod(size) * values.itemsize
        if self._left < 0:
            raise InputError(f"holds tensors of more than {MOST_BYTES >> 20} MB")
        if math.prod(size) == 0:
            return np.empty(size, dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(values):
            raise InputError("is damaged: a tensor is larger than its data")
        view = np.lib.stride_tricks.as_strided(
            values[offset:], size, [step * values.itemsize for step in stride], writeable=False
        )
        return from_bfloat16(np.array(view)) if storage.dtype == BFLOAT16 else np.array(view)


def _collect(make: Callable[[list[Any]], Any]) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(make(reader.pop_to_mark()))


def _tuple_of(count: int) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(tuple([reader.pop() for _ in range(count)][::-1]))


def _append(reader: _Reader) -> None:
    value = reader.pop()
    reader.last(list).append(value)


def _appends(reader: _Reader) -> None:
    values = reader.pop_to_mark()
    reader.last(list).extend(values)


def _set_item(reader: _Reader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.last(dict)[_key(key)] = value


def _set_items(reader: _Reader) -> None:
    items = reader.pop_to_mark()
    reader.last(dict).update(zip(map(_key, items[::2]), items[1::2], strict=True))


def _key(key: Any) -> str | int:
    """Return a checked key of a dict. Nested tuples could take too long to hash."""
    if not isinstance(key, str | int):
        raise InputError("holds a dict with keys that are neither texts nor numbers")
    return key


def _build(reader: _Reader) -> None:
    """Ignore the state of an object: its arguments are enough."""
    reader.pop()


def _name(reader: _Reader) -> None:
    name, module = reader.pop(), reader.pop()
    # Texts that are joined from others could double with each step, or be made a million times.
    if not all(isinstance(text, str) and len(text) <= _LONGEST_NAME for text in (name, module)):
        raise InputError("holds something that is not a tensor")
    reader.push(_Name(f"{module}.{name}"))


_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_STEPS: dict[str, Callable[[_Reader], None]] = {
    "MARK": _Reader.mark,
    "TUPLE": _collect(tuple),
    "LIST": _collect(list),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "REDUCE": _Reader.reduce,
    "BINPERSID": _Reader.storage,
    "BUILD": _build,
    "STACK_GLOBAL": _name,
}
