"""Headers of safetensors files: right ones are read, and no other gets through."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import coe_native as coe
from coe_native.model.safetensors_file import SafetensorsFile


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_and_texts_are_found(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    header = {
        "__metadata__": {"format": "pt"},
        "second": entry(8, 24, [2, 2]),
        "first": entry(0, 8, [2]),
        "none": entry(24, 24, [0, 5]),
        "one": entry(24, 26, [], "BF16"),
        "half bytes": entry(26, 27, [2], "F4"),
    }
    path = write(tmp_path / "a.safetensors", header, values.tobytes() + b"xyz")
    file = SafetensorsFile.read(path)
    assert list(file.tensors) == ["first", "second", "none", "one", "half bytes"]
    assert file.metadata == {"format": "pt"}
    second = file.tensors["second"]
    assert (second.dtype, second.shape, second.n_bytes) == ("F32", (2, 2), 16)
    data = path.read_bytes()[second.begin : second.begin + second.n_bytes]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), values[2:])
    assert SafetensorsFile.read(write(tmp_path / "empty.safetensors", {})).tensors == {}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": entry(0, 8, [3])}, b"x" * 8),
        ({"a": entry(0, 8, [2])}, b"x" * 7),
        ({"a": entry(0, 8, [2])}, b"x" * 9),
        ({"a": entry(4, 12, [2])}, b"x" * 12),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"x" * 12),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, b"x" * 8),
        ({"a": entry(0, 8, [2]), "b": entry(12, 16, [1])}, b"x" * 16),
        ({"a": entry(8, 0, [2])}, b"x" * 8),
        ({"a": entry(0, 8, [-2])}, b"x" * 8),
        ({"a": entry(0, 8, [2**40, 2**40])}, b"x" * 8),
        ({"a": entry(0, 2**63, [2**61])}, b""),
        ({"a": entry(0, 0, [0] * 1000)}, b""),
        ({"a": entry(0, 8, [2], "F31")}, b"x" * 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"x" * 8),
        ({"a": 5}, b""),
        ({"__metadata__": {"a": 1}}, b""),
        ([], b""),
        (b"{", b""),
        (b"", b""),
        (b"\xff\xfe", b""),
        (b'{"a": ' + b"[" * 100_000, b""),
    ],
)
def test_a_damaged_or_hostile_header_is_refused_in_one_line(tmp_path: Path, header: Any, data: bytes) -> None:
    path = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(coe.InputError) as caught:
        SafetensorsFile.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, struct.pack("<Q", 99) + b"{}"])
def test_what_is_cut_off_or_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(coe.InputError, match="not a safetensors file"):
        SafetensorsFile.read(path)
    with pytest.raises(coe.InputError, match="cannot be read"):
        SafetensorsFile.read(tmp_path / "missing.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=1)), max_size=3),
)
def test_what_gets_through_lies_within_the_file(
    tmp_path: Path, shapes: list[list[int]], changes: list[tuple[int, bytes]]
) -> None:
    header, end = {}, 0
    for number, shape in enumerate(shapes):
        size = 4 * int(np.prod(shape))
        header[f"t{number}"] = entry(end, end + size, shape)
        end += size
    path = write(tmp_path / "a.safetensors", header, b"\0" * end)
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte[0]
    path.write_bytes(data)
    try:
        file = SafetensorsFile.read(path)
    except coe.InputError:
        assert changes
        return
    assert sum(tensor.n_bytes for tensor in file.tensors.values()) <= len(data)
    assert all(tensor.begin + tensor.n_bytes <= len(data) for tensor in file.tensors.values())
