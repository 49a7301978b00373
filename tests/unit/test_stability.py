"""Agreement of masks: when a corpus is large enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.profiles import make_profile

import coe_native as coe
from coe_native.corpus.bundles import bundles
from coe_native.corpus.in_memory import corpus_of
from coe_native.masks.options import MaskOptions
from coe_native.masks.stability import Stability

KEEP = MaskOptions(keep=8)


@pytest.fixture
def many() -> list[list[int]]:
    generator = np.random.default_rng(4)
    return [generator.integers(0, 256, length).tolist() for length in generator.integers(10, 90, 80)]


def test_stability_is_checked_four_times_per_doubling() -> None:
    until = Stability(0.9, KEEP)
    seen = []
    for tokens in range(0, 70_000, 512):
        if until.due(tokens):
            seen.append(tokens)
            until._add(tokens, np.ones((1, 8), np.bool_))
    assert seen[:9] == [4096, 5120, 6144, 7168, 8192, 10240, 12288, 14336, 16384]
    assert until.curve[8] == replace(until.curve[8], quarter=1.0, half=1.0, three_quarters=1.0)
    assert seen[8] // 2 == seen[4]
    assert seen[8] * 3 // 4 == seen[6]


def test_every_document_runs_once_in_any_order(many: list[list[int]]) -> None:
    corpora = [corpus_of(many[:50], "a"), corpus_of(many[50:], "b")]
    shuffled = [pair for bundle in bundles(corpora, shuffled=True) for pair in bundle.documents]
    in_order = [pair for bundle in bundles(corpora) for pair in bundle.documents]
    assert shuffled != in_order
    assert sorted(shuffled, key=repr) == sorted(in_order, key=repr)
    assert shuffled == [pair for bundle in bundles(corpora, shuffled=True) for pair in bundle.documents]


def test_agreement_of_zero_is_refused() -> None:
    with pytest.raises(coe.InputError, match="0"):
        Stability(0.0, KEEP)


@pytest.mark.parametrize("state", ["", "{}", '[[1, "!"]]', '[[1, "AAAA"]]', '[[1000000, "////////"]]', "[[1]]"])
def test_a_damaged_state_is_refused(state: str) -> None:
    until = Stability(0.9, KEEP)
    with pytest.raises(coe.InputError):
        until.restore(state, make_profile(1, n_layers=3, n_experts=16))
