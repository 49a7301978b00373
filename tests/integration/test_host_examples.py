"""The examples for C programs: built against the installed packages, as their users would, and run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from support.cpp_build import succeed
from support.llamas import load
from support.serving_client import DEMO

import coe_native as coe
from coe_native._native import core

pytestmark = [pytest.mark.cpp, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
SITE_PACKAGES = Path(llama_cpp.__file__).parent.parent
PROMPT = "def main():\n    for line in "
NO_REPACK = ["--no-repack"] if core.has_amx() else []
"""llama.cpp itself crashes on this model where there is AMX."""


def build(example: str, directory: Path, *options: str) -> Path:
    """The built program."""
    cmake_dir = succeed(directory, sys.executable, "-m", "coe_native", "--cmake-dir").strip()
    configure = ["cmake", "-S", str(EXAMPLES / example), "-B", str(directory / "build"), "-G", "Ninja"]
    prefix = [f"-DCMAKE_PREFIX_PATH={SITE_PACKAGES}", f"-Dcoe_native_DIR={cmake_dir}"]
    succeed(directory, *configure, *prefix, *options, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")
    succeed(directory, "cmake", "--build", str(directory / "build"))
    return directory / "build"


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("c_host", tmp_path_factory.mktemp("c_host")) / "generate"


@pytest.fixture(scope="module")
def llama_cpp_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The headers of `common` of llama.cpp's source, which no package installs."""
    directory = tmp_path_factory.mktemp("source")
    name = "llama-cpp-python"  # and no more than that: what its build needs may come ready-made
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name]
    version = f"{name}=={llama_cpp.__version__}"
    run = subprocess.run(
        [*download, version], cwd=directory, capture_output=True, text=True, check=False, timeout=300
    )
    if run.returncode != 0 and "No matching distribution" not in run.stderr:
        pytest.fail(run.stderr[-2000:])
    if run.returncode != 0:
        pytest.skip("llama.cpp's source cannot be had: no package index in reach")
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        root = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
        headers = [m for m in opened if m.name.startswith(f"{root}/common/") and m.name.endswith(".h")]
        opened.extractall(directory, headers, filter="data")
    return directory / root


def test_the_c_program_counts_what_python_counts(generate: Path, tmp_path: Path) -> None:
    """The prompt's tokens as `profile` counts them; and prompt and answer as an attached Llama, which runs them in
    the same batches."""
    directory = tmp_path
    for n_tokens in (0, 24):
        command = [str(generate), str(DEMO), f"{n_tokens}.gguf", str(n_tokens), PROMPT, *NO_REPACK]
        text = succeed(directory, *command)
    of_prompt, of_both = (coe.RoutingProfile.load(directory / f"{n}.gguf") for n in (0, 24))
    with coe.Model(DEMO, n_threads=2) as model:
        tokens = model.tokenize(PROMPT)
        expected = coe.profile(model, [PROMPT])
    assert of_prompt.n_tokens == len(tokens)
    np.testing.assert_array_equal(of_prompt.histograms, expected.histograms)
    np.testing.assert_allclose(of_prompt.weight_sum, expected.weight_sum, rtol=1e-6)
    assert of_prompt.fingerprint == expected.fingerprint

    llama = load(DEMO, flash_attn=True)
    with coe.attach(llama) as capture:
        answer = llama(PROMPT, max_tokens=24, temperature=0.0)["choices"][0]["text"]
        # The last token that a Llama has sampled is not run; the C program runs all.
        llama.eval([llama.sample(temp=0.0)])
        assert text == answer + "\n"
        assert of_both.n_tokens == capture.profile.n_tokens
        np.testing.assert_array_equal(of_both.histograms, capture.profile.histograms)
        np.testing.assert_allclose(of_both.weight_sum, capture.profile.weight_sum, rtol=1e-6)


def test_the_c_program_applies_a_mask(generate: Path, tmp_path: Path) -> None:
    with coe.Model(DEMO, n_threads=2) as model:
        mask = coe.build_mask(coe.profile(model, [PROMPT * 20]), 16)
    mask.save(tmp_path / "mask.json")
    coe.prune(DEMO, mask, tmp_path / "specialist.gguf")
    options = ["16", PROMPT, *NO_REPACK]
    masked = [str(generate), str(DEMO), "masked.gguf", *options, "--mask", "mask.json"]
    pruned = [str(generate), "specialist.gguf", "pruned.gguf", *options]
    assert succeed(tmp_path, *masked) == succeed(tmp_path, *pruned)
    counted = coe.RoutingProfile.load(tmp_path / "masked.gguf")
    of_specialist = coe.RoutingProfile.load(tmp_path / "pruned.gguf")
    for index, block in enumerate(counted.layers):
        np.testing.assert_array_equal(counted.counts[index, list(mask.kept[block])], of_specialist.counts[index])


def test_the_c_program_reports_errors(generate: Path, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}")
    lines = {
        "no.json": [str(DEMO), "out.gguf", "4", PROMPT, "--mask", "no.json", *NO_REPACK],
        "no/out.gguf": [str(DEMO), "no/out.gguf", "1", PROMPT, *NO_REPACK],
        "model": [str(tmp_path / "no.json"), "out.gguf", "4", PROMPT],
        "MODEL": [],
    }
    for message, line in lines.items():
        run = subprocess.run([str(generate), *line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 1
        assert message in run.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_pkg_config_finds_the_c_library(tmp_path: Path) -> None:
    directory = succeed(tmp_path, sys.executable, "-m", "coe_native", "--pkg-config-dir").strip()
    code = "int main(void) { return coe_native_abi_version() == COE_NATIVE_ABI_VERSION ? 0 : 1; }\n"
    (tmp_path / "abi.c").write_text('#include "coe_native.h"\n' + code)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "coe_native"],
        env={**os.environ, "PKG_CONFIG_PATH": directory},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    succeed(tmp_path, "cc", "-o", "abi", "abi.c", *flags)
    succeed(tmp_path, str(tmp_path / "abi"))


def test_a_program_that_uses_common_is_profiled(llama_cpp_source: Path, tmp_path: Path) -> None:
    """With its warm-up, in which all experts run, and its own options."""
    program = build("common_host", tmp_path, f"-DLLAMA_CPP_SOURCE={llama_cpp_source}") / "common_host"
    options = ["-m", str(DEMO), "-p", "def main():", "-n", "8", "--temp", "0", "-t", "2", "-fa", "on"]
    text = succeed(tmp_path, str(program), *options, *NO_REPACK)
    profile = coe.RoutingProfile.load(tmp_path / "common_host.profile.gguf")
    assert profile.is_whole
    assert [(record.name, record.tokens) for record in profile.corpora] == [("a program on common", 12)]
    llama = load(DEMO, flash_attn=True)
    with coe.attach(llama) as capture:
        assert text == llama("def main():", max_tokens=8, temperature=0.0)["choices"][0]["text"] + "\n"
        llama.eval([llama.sample(temp=0.0)])
        np.testing.assert_array_equal(profile.histograms, capture.profile.histograms)
