"""How the package is put together: pins, what it loads, the C library."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import coe_native as coe
from coe_native._native import core

ROOT = Path(__file__).parent.parent
PACKAGE = Path(core.__file__).parent

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_one_release_of_llama_cpp_python_is_pinned_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = (ROOT / "third_party" / "llama.cpp" / "version.cmake").read_text()
    (pin,) = re.findall(r'"(llama-cpp-python==[\d.]+)"', version)
    assert pin in project["build-system"]["requires"]
    assert pin in project["project"]["dependencies"]
    assert pin == f"llama-cpp-python=={llama_cpp.__version__}"
    assert project["project"]["version"] == coe.__version__


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
    assert "was compiled against ggml" in last
    assert "9.9.9" in last
    assert "pip install" in last


def test_help_does_not_load_llama_cpp(tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from coe_native.cli import group; "
        "result = CliRunner().invoke(group, ['--help']); assert result.exit_code == 0, result; "
        "assert 'specialise' in result.output; print('numpy' in sys.modules, 'llama_cpp' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "False False\n"


def c_library() -> ctypes.CDLL:
    (path,) = (PACKAGE / "lib").glob("libcoe_native.*")
    library = ctypes.CDLL(str(path))
    library.coe_profiler_new.restype = ctypes.c_void_p
    library.coe_profiler_new.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
    library.coe_profiler_error.restype = ctypes.c_char_p
    library.coe_profiler_error.argtypes = [ctypes.c_void_p]
    library.coe_profiler_free.argtypes = [ctypes.c_void_p]
    library.coe_profiler_counts.argtypes = [ctypes.c_void_p] * 3
    library.coe_profiler_tokens.argtypes = [ctypes.c_void_p] * 2
    library.coe_profiler_mask.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return library


@pytest.mark.parametrize("n_ubatch", [128, 32])
def test_a_c_host_counts_what_python_counts(
    model_file: Callable[[str, str], Path], documents: list[list[int]], n_ubatch: int
) -> None:
    """The C callback in a host's own context, logits for the last token only: layers that gather their rows
    see fewer tokens, and say so; those before them count like Python."""
    path = model_file("qwen3moe", "F32")
    tokens = documents[1][:100]
    with coe.Model(path, n_ctx=128, n_batch=n_ubatch, n_threads=1) as model:
        expected = coe.profile(model, [tokens])
    library = c_library()
    blocks = np.array(expected.layers, np.int32)
    profiler = library.coe_profiler_new(blocks.ctypes.data, len(blocks), 16, 4)
    assert profiler

    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 128, 128, n_ubatch
    params.n_threads = params.n_threads_batch = 1
    params.cb_eval = ctypes.cast(library.coe_profiler_callback, type(params.cb_eval))
    params.cb_eval_user_data = profiler
    loaded = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(loaded, params)
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(loaded)

    histograms = np.zeros((3, 16, 4), np.int64)
    weight_sum = np.zeros((3, 16, 4))
    seen = np.zeros(3, np.uint64)
    assert library.coe_profiler_tokens(profiler, seen.ctypes.data) == 0
    assert seen.tolist() == [100, 100, 1]
    assert library.coe_profiler_counts(profiler, histograms.ctypes.data, weight_sum.ctypes.data) == 0
    np.testing.assert_array_equal(histograms[:2], expected.histograms[:2])
    np.testing.assert_allclose(weight_sum[:2], expected.weight_sum[:2], rtol=1e-6)
    assert histograms[2].sum() == 4
    bad = np.array([16, 0, 1, 2], np.int32)
    assert library.coe_profiler_mask(profiler, np.tile(bad, 3).ctypes.data, 4) == 1
    assert b"keeps expert 16 of 16" in library.coe_profiler_error(profiler)
    library.coe_profiler_free(profiler)


def test_the_c_library_exports_its_own_names_only() -> None:
    (path,) = (PACKAGE / "lib").glob("libcoe_native.so")
    symbols = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in symbols.stdout.splitlines()}
    assert names
    assert {name for name in names if not name.startswith("coe_")} == set()
