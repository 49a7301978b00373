"""The value of a sweep and its file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sweeps import make_sweep

import coe_native as coe
from coe_native.evaluation.sweep import Sweep, frontier


@given(st.dictionaries(st.integers(1, 32), st.floats(-0.2, 1), min_size=1), st.floats(0, 1))
def test_the_smallest_keep_stays_within_the_loss(losses: dict[int, float], max_loss: float) -> None:
    found = make_sweep(losses).smallest("utility", max_loss)
    within = {keep: 10.0 * (1 + loss) / 10.0 - 1 <= max_loss for keep, loss in losses.items()}
    good = [keep for keep in losses if all(within[other] for other in losses if other >= keep)]
    assert (None if found is None else found.keep) == min(good, default=None)


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from([-0.1, 0.0, 0.1, 0.2, 0.5])), max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[int, float]]) -> None:
    """A point is off the frontier if another is at least as good in size and loss, and better in one of them."""
    expected = [
        not any((a <= size and b < loss) or (a < size and b <= loss) for a, b in points) for size, loss in points
    ]
    assert frontier(points) == expected
    for size, loss in points:  # each is reached or beaten by one on the frontier
        assert any(a <= size and b <= loss for (a, b), is_on in zip(points, expected, strict=True) if is_on)


def test_a_sweep_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    make_sweep({4: 0.5, 8: 0.01}).save(path)
    data = json.loads(path.read_text())
    for point in data["points"]:
        for new in ("model", "frontier", "memory"):
            del point[new]
    path.write_text(json.dumps(data))
    assert Sweep.load(path) == make_sweep({4: 0.5, 8: 0.01})


def test_a_sweep_survives_its_file(tmp_path: Path) -> None:
    whole = make_sweep({4: 0.5, 8: 0.01})
    whole.save(tmp_path / "s.json")
    assert Sweep.load(tmp_path / "s.json") == whole
    rows = list(csv.DictReader(io.StringIO(whole.as_csv())))
    assert [(row["method"], row["keep"]) for row in rows] == [("parent", "32"), ("utility", "4"), ("utility", "8")]
    np.testing.assert_allclose([float(row["loss"]) for row in rows], [0, 0.5, 0.01])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "{}", "sweep"),
        (lambda text: text[:-20], "sweep"),
        (lambda text: text.replace('"version": 1', '"version": 2'), r"\b2\b"),
        (lambda text: text.replace('"keep": 4', '"keep": "four"'), "sweep"),
        (lambda text: text.replace('"perplexity": 10.0', '"perplexity": 0.0'), r"\b0\b"),
        (lambda text: text.replace('"parent": [', '"parent": [], "x": ['), "texts"),
    ],
)
def test_damaged_sweeps_are_refused(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    path = tmp_path / "s.json"
    make_sweep({4: 0.5}).save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(coe.InputError, match=said):
        Sweep.load(path)
