"""Copying, zeroing and reading ahead, also where the system has no short way for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native import holes
from coe_native.ahead import ahead
from coe_native.copying import copy_range

DATA = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


@pytest.fixture(params=["by the system", "by hand", "by the system in part"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by hand":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.setattr(holes, "_punch", lambda *_: False)
    if request.param == "by the system in part":
        if not hasattr(os, "copy_file_range"):
            pytest.skip("this system has no such call")
        whole = os.copy_file_range
        once = iter([True])

        def part(source: int, target: int, count: int, *offsets: int) -> int:
            if not next(once, False):
                raise OSError("no more")
            return whole(source, target, count // 3, *offsets)

        monkeypatch.setattr(os, "copy_file_range", part)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_ranges_are_appended_in_order(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    with source.open("rb") as file, (tmp_path / "target").open("wb") as target:
        target.write(b"head")
        copy_range(file, 1001, 200_000, target)
        target.write(b"between")
        copy_range(file, 7, 0, target)
        copy_range(file, 0, 5, target)
    expected = b"head" + DATA[1001:201_001] + b"between" + DATA[:5]
    assert (tmp_path / "target").read_bytes() == expected
    refused = pytest.raises(coe.InputError, match="ends before byte 300001")
    with source.open("rb") as file, (tmp_path / "short").open("wb") as target, refused:
        copy_range(file, 100, 299_901, target)


@pytest.mark.usefixtures("way")
def test_zeros_change_their_part_only(tmp_path: Path) -> None:
    """From the middle of a page to the middle of another; the file stays as long as it was."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("r+b") as file:
        holes.write_zeros(file, 4100, 100_000)
        holes.write_zeros(file, len(DATA) - 3, 3)
    assert path.read_bytes() == DATA[:4100] + bytes(100_000) + DATA[104_100:-3] + bytes(3)


def test_what_is_fetched_ahead_comes_in_order_and_so_do_errors() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("the sixth")

    coming = ahead(items())
    assert [next(coming) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(coming)
    assert list(ahead([])) == []
