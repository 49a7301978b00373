"""What tests of whole programs share."""

from __future__ import annotations

from typing import Any

import llama_cpp.llama_cpp as low_level
import pytest

from coe_native._native import core


@pytest.fixture(autouse=True)
def plain_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let llama-cpp-python load Gemma 4 on a CPU with AMX, where llama.cpp itself crashes (see csrc)."""
    default = low_level.llama_model_default_params

    def without_amx() -> Any:
        params = default()
        params.use_extra_bufts = not core.has_amx()
        return params

    monkeypatch.setattr(low_level, "llama_model_default_params", without_amx)
