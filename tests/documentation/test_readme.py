"""The README is short, and its commands work: in a fresh clone, and on a small model in place of a real one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.bad_files import PIECES, byte_tokenizer
from support.documentation import blocks, run_page, same_output
from support.first_command import FirstRun
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


@pytest.mark.xdist_group("demo")
@pytest.mark.timeout(1800)
def test_its_first_command_works_in_a_fresh_clone_and_prints_the_figures_of_the_pages(first_run: FirstRun) -> None:
    assert len(list(first_run.directory.glob("*-specialist.gguf"))) == 3
    (block,) = blocks((ROOT / "docs" / "benchmarks" / "quality.md").read_text(encoding="utf-8"))
    (demo,) = block.commands()
    table = first_run.printed[first_run.printed.index(demo.output[0]) :]  # pip's messages come before it
    assert same_output(demo.output, table), "\n".join(table)
    lost = [re.findall(r"\+[\d.]+(?=%)", line) for line in table if "contribution, live" in line]
    text = README.read_text(encoding="utf-8")
    named = [re.findall(r"\+\d+(?= %)", line) for line in text.splitlines() if re.match(r"\| .* MB \|$", line)]
    assert named == [[f"{float(loss):+.0f}" for loss in losses] for losses in lost]
