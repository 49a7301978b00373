"""`coe-native --version`, for reports of problems, and the refusal of another llama-cpp-python."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import llama_cpp
import pytest
from support.command_line import ENVIRONMENT, ok, report, run

import coe_native as coe
from coe_native.recipes import demo


@pytest.fixture
def other_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Metadata of another llama-cpp-python, in front of the installed one's."""
    metadata = tmp_path / "llama_cpp_python-0.3.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.1\n")
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    return "0.3.1"


def test_the_version_is_one_line() -> None:
    assert ok("--version").out == f"coe-native, version {coe.__version__}\n"


@pytest.mark.parametrize("order", [("--version", "--json"), ("--json", "--version")])
def test_json_describes_versions_and_devices(order: tuple[str, str]) -> None:
    facts = report(order[0]) if order[1] == "--json" else run(*order).json
    assert facts["coe_native"] == coe.__version__
    assert facts["python"] == platform.python_version()
    assert facts["llama_cpp_python"] == llama_cpp.__version__
    assert facts["ggml"][0].isdigit()
    cpu = next(device for device in facts["devices"] if device["name"] == "CPU")
    assert cpu["backend"] == "CPU"
    assert cpu["description"]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert cpu["total_bytes"] == pytest.approx(pages, rel=0.01)


def test_json_without_a_command_or_version_is_refused() -> None:
    done = run("--json", "inspect", demo.MODEL)
    assert done.status == 2
    assert "--json" in done.err


def test_another_release_of_llama_cpp_python_is_refused_with_the_command_that_helps(other_release: str) -> None:
    done = run("inspect", demo.MODEL)
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert other_release in line
    assert f"pip install llama-cpp-python=={llama_cpp.__version__}" in line


def test_the_version_is_also_shown_where_llama_cpp_cannot_be_loaded(other_release: str) -> None:
    facts = report("--version")
    assert facts["coe_native"] == coe.__version__
    assert other_release in facts["error"]
