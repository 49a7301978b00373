"""The folders of the C++ core include only those before them, as CMake links them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
ORDER = ("base", "gguf", "model", "capture", "formats", "llama", "capi", "bindings")
SOURCES = sorted(path for folder in ORDER for path in (CSRC / folder).iterdir() if path.suffix in (".h", ".cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CSRC)))
def test_sources_include_no_later_folder(source: Path) -> None:
    own = ORDER.index(source.parent.name)
    folders = re.findall(r'#include "(\w+)/', source.read_text(encoding="utf-8"))
    assert all(ORDER.index(folder) <= own for folder in folders)
    if source.parent.name == "capi":
        assert "llama" not in folders, "programs that use the C library bring their own llama.cpp"


def test_every_folder_is_in_the_order() -> None:
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()}
    assert folders == {*ORDER, "cmake", "include"}
