"""GroveMoE with a group for each expert: llama.cpp runs its router twice in a layer, with the same names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
from support.architectures import ARCHITECTURES
from support.bare_host import load_c_library
from support.command_line import ok, run
from support.random_models import write_random_model

import coe_native as coe


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    grove = ARCHITECTURES["grovemoe"]
    monkeypatch.setitem(
        ARCHITECTURES,
        "grovemoe",
        replace(grove, metadata=lambda sizes: {**grove.metadata(sizes), "experts_per_group": 1}),
    )
    write_random_model(tmp_path / "grove.gguf", "grovemoe")
    return tmp_path / "grove.gguf"


def test_choices_are_not_counted(model: Path) -> None:
    with pytest.raises(coe.InputError, match="twice"):
        coe.profile(model, [[1, 2, 3]])
    with coe.Model(model, n_ctx=64) as loaded:
        assert loaded.logits([1, 2, 3]).shape[0] == 3


def test_inspect_gives_the_reason(model: Path) -> None:
    assert "twice" in json.loads(ok("inspect", model, "--json").out)["cannot_profile"]
    assert "cannot be profiled" in ok("inspect", model).out


def test_profile_refuses_before_reading_the_corpus(model: Path, tmp_path: Path) -> None:
    done = run("profile", model, "-c", tmp_path / "missing.txt", "-o", tmp_path / "p.gguf")
    assert done.status == 2
    assert "twice" in done.err


def test_attach_and_the_c_library_refuse(model: Path) -> None:
    llama = llama_cpp.Llama(str(model), n_ctx=64, verbose=False)
    with pytest.raises(coe.InputError, match="twice"):
        coe.attach(llama)
    llama.close()
    library = load_c_library()
    assert not library.coe_profiler_open(str(model).encode())
    assert b"twice" in library.coe_last_error()


def test_a_group_of_two_experts_is_counted(tmp_path: Path) -> None:
    write_random_model(tmp_path / "grove.gguf", "grovemoe")
    assert coe.MoeModel(tmp_path / "grove.gguf").cannot_count is None
    assert coe.profile(tmp_path / "grove.gguf", [list(range(193))], n_ctx=256, n_threads=1).n_tokens == 193
