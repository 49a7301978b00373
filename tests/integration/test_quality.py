"""The benchmark of methods: what it says is what one would find by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import coe_native as coe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_quality_judges_every_method(
    tmp_path: Path, model_file: Callable[[str, str], Path], names: tuple[str, ...]
) -> None:
    model = model_file("qwen3moe", "Q8_0")
    random = np.random.default_rng(5)
    arguments = []
    for index, name in enumerate(names):
        low = 128 * index  # kinds of text that share no token
        for part, n_tokens in (("profile", 700), ("test", 600)):
            tokens = random.integers(low, low + 128, (n_tokens // 100, 100), dtype=np.int32)
            np.save(tmp_path / f"{name}.{part}.npy", tokens)
        paths = ",".join(str(tmp_path / f"{name}.{part}.npy") for part in ("profile", "test"))
        arguments += ["--domain", f"{name}={paths}"]
    line = [sys.executable, "-m", "benchmarks.quality", tmp_path / "out", "--model", model, *arguments]
    line += ["--size", 300, "--seeds", 2, "--threads", 1]
    subprocess.run(list(map(str, line)), cwd=ROOT, capture_output=True, check=True)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["findings"]
    assert len(found) == len(names) ** 2 * 3 * len(coe.METHODS) * 3
    with coe.Model(model, n_sequences=16, n_threads=1) as loaded:
        texts = {name: coe.read_corpus(tmp_path / f"{name}.test.npy") for name in names}
        profile = coe.profile_corpora(
            loaded, [coe.read_corpus(tmp_path / "one.profile.npy")], stats="contribution"
        )
        swept = coe.sweep(loaded, profile, texts, keeps=[8], methods=["reap"])
    (point,) = swept.points
    (mine,) = (
        f
        for f in found
        if (f["domain"], f["size"], f["method"], f["share"], f["text"]) == ("one", "all", "reap", 0.5, "one")
    )
    assert mine["loss"] == pytest.approx(swept.losses(point)[0], rel=1e-6)
    assert mine["kl"] == pytest.approx(point.evaluations[0].kl_divergence, rel=1e-6)
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"{100 * mine['loss']:+.1f}" in table
    assert " ± " in table
    assert "plotly" in (tmp_path / "out" / "plot.html").read_text()
