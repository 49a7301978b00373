"""The C++ core's own tests, plainly and under sanitizers, and two models profiled at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.cpp_build import build, succeed

import coe_native as coe

pytestmark = [pytest.mark.cpp, pytest.mark.slow]


def test_the_core_passes_its_tests(core_build: Path) -> None:
    succeed(core_build, "ctest", "--output-on-failure")


def test_the_core_passes_under_address_and_undefined_sanitizers(sanitized_core: Path) -> None:
    succeed(sanitized_core, "ctest", "--output-on-failure")


def test_the_core_passes_under_thread_sanitizer(tmp_path: Path, model_file: Callable[[str, str], Path]) -> None:
    """Under ThreadSanitizer, which sees two threads touch the same without taking turns: the core's tests, and two
    threads that profile two models."""
    build(tmp_path, "thread", "-DCOE_BUILD_TESTS=ON")
    succeed(tmp_path, "ctest", "--output-on-failure")
    arguments: list[str] = []
    for family in ("qwen3moe", "olmoe"):
        moe = coe.MoeModel(model_file(family, "Q8_0"))
        assert moe.blocks == list(range(moe.n_blocks))
        arguments += [str(moe.path), *map(str, (moe.n_blocks, moe.n_experts, moe.top_k))]
    assert succeed(tmp_path, str(tmp_path / "coe_two_sessions"), *arguments) == "equal\n"
