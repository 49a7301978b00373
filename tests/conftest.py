"""Small models and texts that many tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.architectures import ARCHITECTURES, COVERED, NOT_COVERED
from support.cpp_build import build
from support.devices import RUNTIMES
from support.first_command import FirstRun, run_first_command
from support.random_models import FAMILIES, write_random_model

import coe_native as coe

LENGTHS = (40, 130, 1, 64, 97, 33)
"""Tokens of each document: below, at and above a batch of 64, and of a window of 128."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-docs", action="store_true", help="write what the documentation's commands print into its pages"
    )


def pytest_configure() -> None:
    """Hides GPUs, unless they are what is to be tested: equal to the last bit is only what one device computes."""
    if "COE_TEST_GPU" not in os.environ:
        for runtime in RUNTIMES:
            os.environ[f"{runtime}_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def documents() -> list[list[int]]:
    generator = np.random.default_rng(7)
    return [generator.integers(0, 256, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A random model's file by family and quantisation, written once."""
    directory = tmp_path_factory.mktemp("models")

    def write(family: str, quantization: str = "F32") -> Path:
        path = directory / f"{family.replace(', ', '-').replace(' ', '-')}-{quantization}.gguf"
        if not path.exists():
            write_random_model(path, family, quantization=quantization)
        return path

    return write


@pytest.fixture(scope="session")
def profile_of(
    model_file: Callable[[str, str], Path], documents: list[list[int]]
) -> Callable[[str, str], coe.RoutingProfile]:
    """The profile of a random model over `documents`, made once."""
    made: dict[tuple[str, str], coe.RoutingProfile] = {}

    def profile(family: str, quantization: str = "F32") -> coe.RoutingProfile:
        key = family, quantization
        if key not in made:
            made[key] = coe.profile(model_file(*key), documents, n_ctx=128, n_batch=64, n_threads=1)
        return made[key]

    return profile


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What part of llama.cpp's architectures the tests have models of."""
    write = terminalreporter.write_line
    write(f"{len(COVERED)} architectures with experts in {len(ARCHITECTURES)} random models; not covered:")
    for name, reason in NOT_COVERED.items():
        write(f"  {name}: {reason}")


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """The README's first command, run once."""
    return run_first_command(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="session")
def core_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ core's tests, built once without sanitizers."""
    directory = tmp_path_factory.mktemp("core")
    build(directory, "", "-DCOE_BUILD_TESTS=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    return directory


@pytest.fixture(scope="session")
def sanitized_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ core's tests and fuzz targets, built once under AddressSanitizer and UndefinedBehaviorSanitizer."""
    directory = tmp_path_factory.mktemp("sanitized")
    build(directory, "address,undefined", "-DCOE_BUILD_TESTS=ON", "-DCOE_BUILD_FUZZERS=ON")
    return directory
