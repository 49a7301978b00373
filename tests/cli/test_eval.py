"""`coe-native eval`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.command_line import (
    RUN,
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_family,
    report,
)


def test_the_masked_parent_has_the_perplexity_of_the_pruned_file(made: Made, tmp_path: Path) -> None:
    parent, out = made.files["F32"], tmp_path / "out.gguf"
    done = ok("prune", parent, "--mask", made.mask, "-o", out)
    assert not done.out
    assert "8 of 16" in done.err
    plain, masked, pruned = (
        report("eval", *model, "--text", made.corpus, *RUN)["texts"][0]
        for model in ([parent], [parent, "--mask", made.mask], [out])
    )
    n_tokens = made.profile_report["tokens"]
    assert plain["n_scored"] == masked["n_scored"] == pruned["n_scored"] == n_tokens // 64 * 31
    assert masked["perplexity"] == pytest.approx(pruned["perplexity"], rel=1e-4)
    assert abs(math.log(plain["perplexity"] / masked["perplexity"])) > 1e-2, "or equality says nothing"
    assert plain["kl_divergence"] is None


@one_family
def test_eval_compares_with_a_reference(made: Made) -> None:
    """Against itself nothing differs; against the quantised file a little does."""
    f32, q4 = made.files["F32"], made.files["Q4_K_M"]
    arguments = ("--text", made.corpus, "--reference", f32, *RUN)
    same = report("eval", f32, *arguments)["texts"][0]
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-12)
    assert same["top1_agreement"] == 1
    table = ok("eval", q4, *arguments).out.splitlines()
    assert "KL divergence" in table[0]
    *_, divergence, agreement = table[1].split()
    assert float(divergence) > 1e-3
    assert 0 < float(agreement.rstrip("%")) < 100


BAD_INPUT: list[tuple[str, str]] = [
    ("eval parent.gguf --text tokens.npy --reference few.gguf", r"few\.gguf.*vocabulary"),
    ("eval parent.gguf --text short.npy", r"short\.npy.*\b2\b"),
    ("eval parent.gguf --text tokens.npy --mask gemma-mask.json", r"gemma-mask\.json.*gemma4"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("eval parent.gguf", "--text"),
    ("eval parent.gguf --text tokens.npy --ctx 2", "ctx|context"),
    ("eval parent.gguf --text tokens.npy --batch 0", "batch"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
