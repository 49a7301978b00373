"""Files that are given as models and are something else: what they are is said in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support.random_models import split_model

import coe_native as coe
from coe_native.recipes import demo

FILES = {
    "empty": (b"", "empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
    "safetensors": (struct.pack("<Q", 60) + b'{"a":{"dtype":"F32"}}' + b" " * 60, "safetensors"),
    "torch": (b"PK\x03\x04" + bytes(60), "archive"),
    "ggjt": (b"tjgg" + bytes(60), "before GGUF"),
    "zeros": (bytes(4096), "download"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "text": (b"just text", "model or a profile"),
}


def test_shards_that_were_joined_as_bytes_are_recognised(tmp_path: Path) -> None:
    shards = split_model(demo.MODEL, tmp_path, 3)
    joined = tmp_path / "joined.gguf"
    joined.write_bytes(b"".join(path.read_bytes() for path in shards))
    with pytest.raises(coe.InputError, match=r"joined\.gguf: holds several shards.*--merge"):
        coe.MoeModel(joined)


def test_partial_downloads_are_recognised(tmp_path: Path) -> None:
    data = demo.MODEL.read_bytes()
    for size in (100, len(data) // 2, len(data) - 100):
        (tmp_path / "a.gguf.part").write_bytes(data[:size])
        with pytest.raises(coe.InputError, match=r"incomplete|truncated"):
            coe.MoeModel(tmp_path / "a.gguf.part")


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_recognised(name: str, tmp_path: Path) -> None:
    data, words = FILES[name]
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(data)
    for read in (coe.MoeModel, coe.RoutingProfile.load):
        with pytest.raises(coe.InputError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
