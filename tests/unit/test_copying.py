"""Copying, zeroing, prefetching and syncing, also where the system has no short way for it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native.files import holes, prefetch
from coe_native.files.atomic import clear_leftovers, replacing
from coe_native.files.copying import copy_range
from coe_native.surgery.write import _EarlySync

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
    refused = pytest.raises(coe.InputError, match="300001")
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


@pytest.mark.parametrize("fails", [False, True])
def test_early_syncs_are_waited_for_and_their_errors_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The system reports a failed write to one sync, and says nothing to the next."""
    monkeypatch.setattr(_EarlySync, "_portion", 1000)
    synced, ended = [], 0

    def fsync(descriptor: int) -> None:
        nonlocal ended
        synced.append(descriptor)
        time.sleep(0.05)
        os.fstat(descriptor)  # it is still open
        ended += 1
        if fails:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.ExitStack() as expecting:
        if fails:
            expecting.enter_context(pytest.raises(OSError, match="Input/output error"))
        with (tmp_path / "file").open("wb") as file, _EarlySync() as syncing:
            for _ in range(30):
                file.write(bytes(100))
                syncing.wrote(file, 100)
            syncing.finish()
    assert 1 <= len(synced) <= 3
    with (tmp_path / "file").open("wb") as file, _EarlySync() as syncing:
        syncing.wrote(file, 1000)  # and then something else goes wrong
    assert ended == len(synced) > 0


def test_prefetch_announces_everything_once_and_not_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _file, start, count, _advice: told.append((start, count)), raising=False
    )
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    monkeypatch.setattr(prefetch, "_AHEAD", 1000)
    monkeypatch.setattr(prefetch, "_STEP", 300)
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        ahead = prefetch.Prefetch([(file, 0, 700), (file, 5000, 0), (file, 6000, 600), (file, 9000, 100)])
        ahead.reading(0)
        assert told == [(0, 300), (300, 300), (600, 100), (6000, 300), (6300, 300)]  # 1300 bytes
        ahead.reading(299)
        assert len(told) == 5
        ahead.reading(2)
        ahead.reading(1000)
    assert told[5:] == [(9000, 100)]
    monkeypatch.delattr(os, "posix_fadvise")
    prefetch.Prefetch(iter([None])).reading(0)  # type: ignore[list-item]


def test_leftovers_of_killed_writers_are_cleared_and_others_left_alone(tmp_path: Path) -> None:
    """A writer that lives holds its file locked. Names that look like patterns, and long ones, are names."""
    for name in ("out[1].gguf", "x" * 250):
        path = tmp_path / name
        with replacing(path) as living:
            living.write(b"half")
            (busy,) = tmp_path.iterdir()
            left = busy.with_name(busy.name.replace(f"{os.getpid()}.coe-tmp", "1.coe-tmp"))
            left.write_bytes(b"left")
            other = tmp_path / ".other.1.coe-tmp"
            other.write_bytes(b"of another output")
            clear_leftovers(path)
            assert {p.name for p in tmp_path.iterdir()} == {busy.name, other.name}
        assert {p.name for p in tmp_path.iterdir()} == {name, other.name}
        path.unlink()
        other.unlink()
