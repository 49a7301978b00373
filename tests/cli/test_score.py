"""`coe-native score`."""

from __future__ import annotations

import csv
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command_line import (
    Made,
    by_line,
    check_input_refused,
    check_options_refused,
    ok,
    one_family,
    report,
)
from support.profiles import make_live_profile, make_profile

import coe_native as coe


@one_family
@pytest.mark.parametrize("method", coe.METHODS)
def test_score_prints_the_scores_of_the_library(made: Made, method: str) -> None:
    profile = coe.RoutingProfile.load(made.profile)
    scores = coe.score(profile, method)
    rows = list(csv.DictReader(io.StringIO(ok("score", made.profile, "--csv", "--method", method).out)))
    assert [(int(row["layer"]), int(row["expert"])) for row in rows] == list(
        itertools.product(range(3), range(16))
    )
    assert [float(row["score"]) for row in rows] == scores.ravel().tolist()
    assert [int(row["chosen"]) for row in rows] == profile.counts.ravel().tolist()
    assert [float(row["mean_rank"]) for row in rows] == profile.mean_rank.ravel().tolist()
    shown = report("score", made.profile, "--method", method)
    assert shown["layers"] == {str(block): scores[i].tolist() for i, block in enumerate(profile.layers)}


@one_family
@pytest.mark.parametrize("top", [3, 16])
def test_the_table_is_not_cut_off(made: Made, top: int) -> None:
    """A table goes to a file as often as to a terminal: nothing in it may be cut off."""
    lines = ok("score", made.profile, "--top", top).out.splitlines()
    best = np.argsort(-coe.score(coe.RoutingProfile.load(made.profile)), axis=1, kind="stable")[:, :top]
    rows = [line for line in lines if re.match(r"\s*\d+ +\d+: ", line)]
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2]
    for row, experts in zip(rows, best.tolist(), strict=True):
        assert [int(expert) for expert in re.findall(r"(\d+): ", row)] == experts
        assert "…" not in row


def test_layers_with_fewer_tokens_are_reported(tmp_path: Path) -> None:
    make_live_profile((60, 7)).save(tmp_path / "live.gguf")
    make_live_profile((60, 0)).save(tmp_path / "blind.gguf")
    make_profile(5, outputs=False).save(tmp_path / "whole.gguf")
    for line in (["score", "live.gguf"], ["mask", "live.gguf", "--keep", "4", "-o", "mask.json"]):
        run = subprocess.run(
            [sys.executable, "-m", "coe_native", *line], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert re.search(r"live\.gguf.*\b60\b.*\b7\b", run.stderr)
    line = ["score", "blind.gguf"]
    run = subprocess.run(
        [sys.executable, "-m", "coe_native", *line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "tokens" in run.stderr.splitlines()[-1]
    line = ["merge", "blind.gguf", "whole.gguf", "-o", "both.gguf"]
    subprocess.run([sys.executable, "-m", "coe_native", *line], cwd=tmp_path, capture_output=True, check=True)
    assert coe.RoutingProfile.load(tmp_path / "both.gguf").layer_tokens == (120, 60)


BAD_INPUT: list[tuple[str, str]] = [
    ("score parent.gguf", r"parent\.gguf.*profile"),
    ("score newer.gguf", r"newer\.gguf.*\b4\b"),
    ("score miscounted.gguf", r"miscounted\.gguf.*\b129\b"),
    ("score cut-profile.gguf", r"cut-profile\.gguf.*truncated"),
]


@by_line("pattern", BAD_INPUT)
def test_bad_input_is_refused(files: Path, line: str, pattern: str) -> None:
    check_input_refused(files, line, pattern)


BAD_OPTIONS: list[tuple[str, str]] = [
    ("score profile.gguf --method magic", "utility.*rank-weighted.*frequency"),
    ("score profile.gguf --top -1", "--?top"),
]


@by_line("pattern", BAD_OPTIONS)
def test_bad_options_are_refused(files: Path, line: str, pattern: str) -> None:
    check_options_refused(files, line, pattern)
