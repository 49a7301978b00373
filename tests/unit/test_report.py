"""The report: its page, and the numbers that it shows against brute force."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pages import write_page
from support.profiles import make_profile
from support.sweeps import make_sweep

import coe_native as coe
from coe_native.evaluation.sweep import ALL_EXPERTS
from coe_native.report.figures import sweep_lines
from coe_native.report.page import report, sweep_page
from coe_native.routing.concentration import concentration, coverage, routed_shares


def test_the_page_warns_and_escapes_names(tmp_path: Path) -> None:
    text = write_page(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "safety" in text
    assert "<script>alert" not in text


def test_a_profile_without_weights_or_ranks_has_a_page(tmp_path: Path) -> None:
    profile = make_profile(1)
    counts = profile.histograms.sum(axis=2, keepdims=True)
    bare = replace(
        profile,
        histograms=counts,
        weight_sum=np.zeros(counts.shape),
        weight_sum_rest=np.zeros(counts.shape),
        has_weights=False,
        n_chosen=profile.top_k,
        outputs=None,
    )
    report(tmp_path / "page.html", {"bare": bare}, keep=bare.router_shape.half, method="frequency")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "choices" in text
    assert "Mean rank" not in text
    with pytest.raises(coe.InputError, match="weights"):
        report(tmp_path / "page.html", {"bare": bare}, keep=bare.router_shape.half)


def test_a_sweep_of_several_files_is_drawn_by_size(tmp_path: Path) -> None:
    one = make_sweep({4: 0.5, 8: 0.1})
    points = [
        replace(point, model=model, n_bytes=point.keep * bits)
        for model, bits in (("a-Q8_0.gguf", 8), ("a-Q4_0.gguf", 4))
        for point in (*one.points, replace(one.unmasked, method=ALL_EXPERTS))
    ]
    found = replace(one, points=tuple(points)).with_frontier()
    (picture,) = sweep_lines(found)
    lines = {line.name: list(line.y) for line in picture.figure.data}
    assert set(lines) == {"a-Q8_0.gguf", "a-Q4_0.gguf", "frontier"}
    assert lines["a-Q8_0.gguf"] == pytest.approx([0.5, 0.1, 0.0])
    sweep_page(tmp_path / "page.html", found)
    assert "a-Q4_0.gguf" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_sweep_alone_has_a_page(tmp_path: Path) -> None:
    sweep_page(tmp_path / "page.html", make_sweep({4: 0.5, 8: 0.1}))
    assert "utility" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_other_models_are_refused(tmp_path: Path) -> None:
    ours = make_profile(1, n_experts=16)
    theirs = replace(make_profile(2, n_experts=16), fingerprint="e" * 64)
    with pytest.raises(coe.InputError, match="model"):
        report(tmp_path / "page.html", {"a": ours, "b": theirs}, keep=8)
    with pytest.raises(coe.InputError, match="model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, masks={"b": coe.build_mask(theirs, 8)})
    with pytest.raises(coe.InputError, match=r"sweep.*model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, sweep=make_sweep({4: 0.5}))
    untied = replace(coe.build_mask(ours, 8), fingerprint="unknown")
    with pytest.raises(coe.InputError, match="--model"):
        report(tmp_path / "page.html", {"a": ours}, keep=8, masks={"b": untied})
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 2**32 - 1))
def test_concentration_equals_brute_force(seed: int) -> None:
    profile = make_profile(seed)
    for shares, found in zip(routed_shares(profile).tolist(), concentration(profile), strict=True):
        n = len(shares)
        assert sum(shares) == pytest.approx(1)
        entropy = -sum(p * math.log(p) for p in shares if p > 0) / math.log(n)
        gini = sum(abs(a - b) for a in shares for b in shares) / (2 * n * n * (sum(shares) / n))
        best = sorted(shares, reverse=True)
        needed = next(k for k in range(1, n + 1) if sum(best[:k]) >= 0.8 - 1e-9)
        assert found.entropy == pytest.approx(entropy)
        assert found.gini == pytest.approx(gini)
        assert found.experts_for_80 == needed
    assert (np.diff(coverage(profile), axis=1) >= -1e-12).all()
    np.testing.assert_allclose(coverage(profile)[:, -1], 1)


def test_concentration_of_one_expert_and_of_all() -> None:
    n_tokens, n = 10, 8
    one = np.zeros((2, n, 1), np.int64)
    one[0, 3, 0] = n_tokens
    one[1, :, 0] = [2, 2, 1, 1, 1, 1, 1, 1]
    profile = coe.RoutingProfile("a", "m", "0" * 64, (0, 1), n_tokens, one, one.astype(float))
    alone, spread = concentration(profile)
    assert (alone.entropy, alone.gini, alone.experts_for_80) == (0, 1 - 1 / n, 1)
    assert spread.entropy > 0.95
    assert spread.experts_for_80 == 6
