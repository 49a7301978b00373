"""Sampling settings in a specialist's file: `coe-native prune` and `specialise`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import ok, run

import coe_native as coe
from coe_native.recipes import demo


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with coe.Model(demo.MODEL, n_threads=2) as model:
        profile = coe.profile(model, ["def first(values):\n    return values[0]\n" * 20])
    path = tmp_path_factory.mktemp("masks") / "mask.json"
    coe.build_mask(profile, keep=16).save(path)
    return path


def settings(path: Path) -> tuple[object, object]:
    header = coe.MoeModel(path)
    return header.metadata("general.sampling.temp"), header.metadata("general.sampling.penalty_repeat")


def test_prune_writes_settings_for_llama_cpp(mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    line = ("prune", demo.MODEL, "--mask", mask, "-o", out, "--force")
    ok(*line)
    assert settings(out) == pytest.approx((0.6, 1.05))
    ok(*line, "--temperature", 0.2, "--repeat-penalty", 1)
    assert settings(out) == pytest.approx((0.2, 1.0))
    ok(*line, "--type", "Q4_0", "--temperature", 0.2)
    assert settings(out) == pytest.approx((0.2, 1.05))
    ok("verify", out, "--parent", demo.MODEL, "--mask", mask)
    ok(*line, "--no-sampling")
    assert settings(out) == (None, None)
    for bad in (("--temperature", -1), ("--repeat-penalty", 0), ("--no-sampling", "--temperature", 1)):
        refused = run(*line, *bad)
        assert (refused.status, len(refused.err.splitlines())) == (2, 1)


def test_specialise_writes_settings_for_llama_cpp(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("def first(values):\n    return values[0]\n" * 80)
    line = ("specialise", demo.MODEL, "-c", text, "--keep", 16, "--ctx", 256, "--force")
    ok(*line, "-o", tmp_path / "a.gguf", "--temperature", 0.5)
    assert settings(tmp_path / "a.gguf") == pytest.approx((0.5, 1.05))
    ok(*line, "-o", tmp_path / "b.gguf", "--type", "Q4_0", "--repeat-penalty", 1.2)
    assert settings(tmp_path / "b.gguf") == pytest.approx((0.6, 1.2))
