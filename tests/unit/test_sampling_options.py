"""Options of generated text."""

from __future__ import annotations

import pytest

import coe_native as coe
from coe_native.llama.generation import Sampling


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_p": 0}, {"repeat_penalty": 0}, {"seed": 2**32}, {"top_k": -1}, {"min_p": 1.0}],
)
def test_impossible_sampling_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(coe.InputError):
        Sampling(**options)  # type: ignore[arg-type]
