"""The README is short, and its commands work: here on a small model in place of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bad_files import PIECES, byte_tokenizer
from support.documentation import run_page
from support.random_models import write_random_model

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.docs


def test_its_commands_for_a_real_model_run(tmp_path: Path) -> None:
    """On random models with as many experts, under the names that the README uses."""
    model = tmp_path / "gemma-4-26B-A4B-it-Q4_K_M.gguf"
    for path, quantization in ((model, "F32"), (tmp_path / "parent-Q8_0.gguf", "Q8_0")):
        write_random_model(
            path,
            "gemma4",
            n_experts=128,
            top_k=8,
            n_vocab=len(PIECES),
            quantization=quantization,
            extra_metadata=byte_tokenizer(),
        )
    (tmp_path / "parent.gguf").hardlink_to(model)
    (tmp_path / "my-texts").mkdir()
    for name in ("scores.py", "profile.py"):
        source = ROOT / "coe_native" / "routing" / name
        (tmp_path / "my-texts" / name).write_text(source.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    (tmp_path / "held-out.txt").write_text(
        (ROOT / "noxfile.py").read_text(encoding="utf-8")[:4000], encoding="utf-8"
    )
    failed = [d for d in run_page(README, tmp_path, tmp_path) if d.status != 0]
    assert not failed, "\n".join(map(str, failed))
    assert (tmp_path / "my-specialist.gguf").stat().st_size < model.stat().st_size
    assert (tmp_path / "best.gguf").exists()
    assert (tmp_path / "specialist.gguf").exists()
