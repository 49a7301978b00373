"""How the package is put together: pins, what it loads, the C library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

import coe_native as coe
from coe_native._native import core, required_llama_cpp_python

ROOT = Path(__file__).parents[2]
PACKAGE = Path(core.__file__).parent

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_release_of_llama_cpp_python_is_named_everywhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "pyproject.toml"]
    named = [
        found
        for page in pages
        for found in re.findall(r"llama-cpp-python==([0-9a-z.]*[0-9a-z])", page.read_text("utf-8"))
    ]
    assert set(named) == {llama_cpp.__version__}
    pin = f"llama-cpp-python=={llama_cpp.__version__}"
    assert pin in PROJECT["build-system"]["requires"]
    assert pin in PROJECT["project"]["dependencies"]
    assert required_llama_cpp_python() == llama_cpp.__version__


def test_one_version_of_the_package_is_named_everywhere() -> None:
    assert PROJECT["project"]["version"] == coe.__version__
    assert f"project(coe_native VERSION {coe.__version__} " in (ROOT / "CMakeLists.txt").read_text()
    assert f"\nversion: {coe.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_module_uses_the_libraries_that_llama_cpp_has_loaded() -> None:
    maps = Path("/proc/self/maps").read_text()
    loaded = set(re.findall(r"\S*/lib(?:llama|ggml-base)\.so\S*", maps))
    assert len(loaded) == 2, loaded
    assert {Path(path).parent for path in loaded} == {Path(llama_cpp.__file__).parent / "lib"}


def test_another_ggml_is_refused_at_import(tmp_path: Path) -> None:
    """A ggml_version that says something else, put in front of the real one."""
    compiler = shutil.which("cc")
    assert compiler, "the package is built from source, so a compiler is there"
    source = tmp_path / "other.c"
    source.write_text('const char * ggml_version(void) { return "9.9.9"; }\n')
    library = tmp_path / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    run = subprocess.run(
        [sys.executable, "-c", "import coe_native._native"],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "ggml" in last
    assert "9.9.9" in last
    assert "pip install" in last


@pytest.mark.parametrize("module", ["coe_native", "coe_native.corpus.read", "coe_native.corpus.sampling"])
def test_import_loads_no_llama_cpp(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print('llama_cpp' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_the_c_library_exports_its_own_names_only() -> None:
    (path,) = (PACKAGE / "lib").glob("libcoe_native.so")
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert names
    assert {name for name in names if not name.startswith("coe_")} == set()
