"""Attacks that were tried and did nothing: headers, pickles, and names that reach a terminal or a page."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.random_models import write_random_model

import coe_native as coe
from coe_native.importers.torch_file import read_torch
from coe_native.model.gguf_file import encode_entry, encode_tensor

HUGE = 2**63


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def header(
    *entries: bytes, tensors: tuple[bytes, ...] = (), n_entries: int | None = None, n_tensors: int = -1
) -> bytes:
    counts = len(tensors) if n_tensors < 0 else n_tensors, len(entries) if n_entries is None else n_entries
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(entries) + b"".join(tensors) + bytes(64)


ARCHITECTURE = encode_entry("general.architecture", "llama")


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 2**32 - 1, 0, 0),
        header(n_entries=HUGE),
        header(n_entries=2**32),
        header(ARCHITECTURE, n_tensors=HUGE),
        header(ARCHITECTURE, n_tensors=2**31),
        header(text(b"key", HUGE)),
        header(text(b"key", 2**64 - 1)),
        header(entry(b"key", 8, text(b"value", 2**40))),
        header(entry(b"key", 99, bytes(8))),
        header(entry(b"key", 9, array(4, 2**62))),
        header(entry(b"key", 9, array(8, 2**60))),
        header(entry(b"key", 9, array(9, 2**20))),
        header(entry(b"key", 9, array(99, 1, bytes(8)))),
        header(entry(b"general.alignment", 4, struct.pack("<I", 0))),
        header(entry(b"general.alignment", 4, struct.pack("<I", 3))),
        header(entry(b"general.alignment", 4, struct.pack("<I", 2**31))),
        header(ARCHITECTURE, ARCHITECTURE),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (2**62, 4), 0, 0),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (2**32, 2**32), 0, 0),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (32,), 0, 2**63),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (32,), 0, 2**64 - 32),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (32,), 9999, 0),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (0,), 0, 0),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (1,) * 9, 0, 0),)),
        header(ARCHITECTURE, tensors=(encode_tensor("a", (1,), 0, 0), encode_tensor("a", (1,), 0, 0))),
        header(ARCHITECTURE, tensors=(text(b"a") + struct.pack("<I", 2**32 - 1),)),
        header(ARCHITECTURE, encode_entry("llama.block_count", 2**32 - 1), encode_entry("llama.expert_count", 8)),
        header(ARCHITECTURE, encode_entry("llama.block_count", 1), encode_entry("llama.expert_count", 2**32 - 1)),
        header(encode_entry("general.architecture", "../../etc/passwd")),
        header(encode_entry("general.architecture", "\x1b]0;owned\x07")),
    ],
)
def test_headers_are_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    before, started = psutil.Process().memory_info().rss, time.monotonic()
    with pytest.raises(coe.InputError):
        coe.MoeModel(path)
    assert time.monotonic() - started < 2
    assert psutil.Process().memory_info().rss - before < 100 << 20


class Touches:
    """What a pickle of it would call."""

    def __init__(self, *call: object) -> None:
        self._call = call

    def __reduce__(self) -> tuple[object, ...]:
        return self._call[0], self._call[1:]


def torch_file(directory: Path, data: bytes, name: str = "archive/data.pkl") -> Path:
    with zipfile.ZipFile(directory / "x.pt", "w") as archive:
        archive.writestr(name, data)
        archive.writestr("archive/byteorder", "little")
    return directory / "x.pt"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch MARK"),
        (eval, "open('MARK', 'w')"),
        (exec, "open('MARK', 'w')"),
        (open, "MARK", "w"),
        (subprocess.run, ["touch", "MARK"]),
        (__import__, "antigravity"),
        (getattr, "x", "__class__"),
    ],
)
def test_pickles_are_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, ...], protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (Touches(*call), [Touches(*call)], {"masks": Touches(*call)}):
        with pytest.raises(coe.InputError):
            read_torch(torch_file(tmp_path, pickle.dumps(value, protocol)))
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch MARK'\no.",
        b"\x80\x02cos\nsystem\n(X\x0a\x00\x00\x00touch MARK\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
        b"\x80\x02c__builtin__\nset\n]\x85R}X\x01\x00\x00\x00aNsb.",
        b"\x80\x02\x82\x01.",
        b"Pos.system\n.",
        b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"\x80\x02(((((((.",
        b"",
    ],
)
def test_instructions_that_are_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(coe.InputError):
        read_torch(torch_file(tmp_path, data))
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize("name", ["../data.pkl", "/data.pkl", "archive/../data.pkl", "a/b/data.pkl"])
def test_archives_with_strange_names(tmp_path: Path, name: str) -> None:
    """They are read, or not; nothing is unpacked into a file."""
    with contextlib.suppress(coe.InputError):
        assert read_torch(torch_file(tmp_path, pickle.dumps([1], 2), name)) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


HOSTILE = "\x1b[2J\x1b]0;owned\x07</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\r\nline"


def run(*words: object) -> str:
    line = [sys.executable, "-m", "coe_native", *map(str, words)]
    ended = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


def test_names_do_nothing_to_a_terminal_or_a_page(tmp_path: Path) -> None:
    """Of models, corpora and files."""
    model = tmp_path / "a\x1b[31m<b>.gguf"
    write_random_model(model, "llama", extra_metadata={"general.name": HOSTILE, "general.author": HOSTILE})
    corpus = tmp_path / "\x1b[31m<script>alert(2)<_script>.npy"
    np.save(corpus, np.arange(200) % 100)
    profile, page = tmp_path / "p.gguf", tmp_path / "r.html"
    said = run("inspect", model, "--json") + run("inspect", model)
    said += run("profile", model, "-c", corpus, "-o", profile)
    said += run("report", profile, "-o", page)
    said += run("mask", tmp_path / "\x1b]0;owned\x07.gguf", "--keep", 8, "-o", tmp_path / "m.json")
    said += run("eval", model, "--text", corpus, "--ctx", 64) + run("corpus", "stats", corpus, "--model", model)
    for character in said:
        assert character.isprintable() or character in "\n\r", repr(character)
    assert page.exists(), said
    html = page.read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "\x1b" not in html
