"""A run that version 0.1.0 began is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe
from coe_native.corpus import bundles
from coe_native.profiling.checkpoint import Checkpoint
from coe_native.recipes import demo

OLD = Path(__file__).parents[1] / "data" / "version_0_1_0" / "demo.gguf.checkpoint"


def test_old_checkpoint_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 4000)
    corpus = coe.Corpus("python", demo.corpus("python", "test").documents[:6])
    shutil.copy(OLD, tmp_path / "p.gguf.checkpoint")
    with coe.Model(demo.MODEL, n_threads=1, n_sequences=16) as model:
        ran: list[int] = []
        resumed = coe.profile_corpora(
            model,
            [corpus],
            stats="routing",
            checkpoint=Checkpoint(tmp_path / "p.gguf", resume=True),
            progress=lambda progress: ran.append(progress.tokens),
        )
        whole = coe.profile_corpora(model, [corpus], stats="routing")
    assert resumed.n_tokens == whole.n_tokens
    assert 0 < ran[-1] < whole.n_tokens
    # On another kind of processor, near-ties may fall to the other side.
    assert np.abs(resumed.histograms - whole.histograms).sum() < 0.02 * whole.histograms.sum()
    assert resumed.fingerprint == whole.fingerprint


def test_old_checkpoint_of_other_statistics_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLE_SIZE", 4000)
    corpus = coe.Corpus("python", demo.corpus("python", "test").documents[:6])
    shutil.copy(OLD, tmp_path / "p.gguf.checkpoint")
    with (
        coe.Model(demo.MODEL, n_threads=1, n_sequences=16) as model,
        pytest.raises(coe.InputError, match=r"another stats \(routing, not contribution\)"),
    ):
        coe.profile_corpora(model, [corpus], checkpoint=Checkpoint(tmp_path / "p.gguf", resume=True))


def test_old_checkpoint_of_another_corpus_is_refused(tmp_path: Path) -> None:
    corpus = coe.Corpus("python", demo.corpus("python", "test").documents[:5])
    shutil.copy(OLD, tmp_path / "p.gguf.checkpoint")
    with (
        coe.Model(demo.MODEL, n_threads=1, n_sequences=16) as model,
        pytest.raises(coe.InputError, match="corpus"),
    ):
        coe.profile_corpora(model, [corpus], checkpoint=Checkpoint(tmp_path / "p.gguf", resume=True))
