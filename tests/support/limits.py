"""Limits so low that small corpora are read, tokenised and run as very large ones are."""

from __future__ import annotations

import pytest

_LOW = {
    "coe_native.corpus.readings.MOST_KEPT": 1,
    "coe_native.corpus.readers.text.LONG": 2000,
    "coe_native.corpus.readers.decoding.PIECE": 301,
    "coe_native.corpus.readers.token_arrays.LONG": 50,
    "coe_native.corpus.readers.token_arrays.PIECE": 7,
    "coe_native.corpus.bundles.MOST_HELD": 3000,
    "coe_native.llama.long_texts.CHUNK": 1000,
    "coe_native.llama.long_texts._AFTER": 200,
    "coe_native.profiling.cutter.MOST_AHEAD": 500,
}


def lower_limits(patch: pytest.MonkeyPatch) -> None:
    """Lower all limits beyond which corpora are not held in memory."""
    for name, value in _LOW.items():
        patch.setattr(name, value)
