"""What is said where memory is not enough, or where llama.cpp ends the process: one line, and what to lower."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import coe_native as coe
from coe_native.llama.memory import advice_for_gpu, check_context, simulated_memory

ModelFile = Callable[[str, str], Path]


@pytest.mark.parametrize("family", ["qwen3moe", "gemma4"])
@pytest.mark.parametrize("f32_kv", [False, True])
def test_a_context_that_cannot_fit_is_refused_with_one_that_fits(
    model_file: ModelFile, monkeypatch: pytest.MonkeyPatch, family: str, f32_kv: bool
) -> None:
    moe = coe.MoeModel(model_file(family, "F32"))

    class FreeMemory:
        available = 10_000_000

    monkeypatch.setattr(psutil, "virtual_memory", FreeMemory)
    with pytest.raises(coe.InputError, match=r"1000000.*--ctx") as caught:
        check_context(moe, coe.ModelOptions(n_ctx=1_000_000, f32_kv=f32_kv))
    fits = advised(str(caught.value))["n_ctx"]
    check_context(moe, coe.ModelOptions(n_ctx=fits, f32_kv=f32_kv))
    # llama.cpp rounds contexts up to multiples of 256.
    with pytest.raises(coe.InputError):
        check_context(moe, coe.ModelOptions(n_ctx=fits + 1, f32_kv=f32_kv))


def advised(message: str) -> dict[str, int]:
    """The options that a message names."""
    found = dict(re.findall(r"--(ctx|batch) (\d+)", message))
    return {f"n_{name}": int(value) for name, value in found.items()}


@pytest.mark.parametrize("family", ["qwen3moe", "jamba"])
def test_advice_that_is_followed_helps(
    model_file: ModelFile, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Less than a batch fits, so the batch must be smaller too."""
    path = model_file(family, "F32")

    class FreeMemory:
        available = simulated_memory(path, coe.ModelOptions(n_ctx=256, n_batch=256, n_gpu_layers=0)).context

    monkeypatch.setattr(psutil, "virtual_memory", FreeMemory)
    with pytest.raises(coe.InputError, match="--ctx") as caught:
        coe.Model(path, n_gpu_layers=0)
    assert advised(str(caught.value)) == {"n_ctx": 256, "n_batch": 256}
    coe.Model(path, n_gpu_layers=0, **advised(str(caught.value))).close()
    FreeMemory.available = 0
    with pytest.raises(coe.InputError, match="context"):
        coe.Model(path, n_gpu_layers=0)
    # An encoder keeps no keys and values.
    coe.Model(model_file("nomic-bert-moe", "F32"), n_gpu_layers=0).close()


def test_a_context_beyond_all_memory_is_not_tried(model_file: ModelFile) -> None:
    with pytest.raises(coe.InputError, match="--ctx"):
        coe.Model(model_file("qwen3moe", "F32"), n_ctx=2**31 - 1, n_gpu_layers=0)


def test_blocks_are_moved_until_there_is_room(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, as if the experts in host memory took nothing."""
    moe = coe.MoeModel(model_file("gemma4", "Q8_0"))
    of_block = {layer.block: sum(tensor.n_bytes for tensor in layer.tensors) for layer in moe.layers}

    def simulated(_: Path, options: coe.ModelOptions) -> coe.Memory:
        in_host = sum(of_block.get(block, 0) for block in range(options.n_cpu_moe))
        return coe.Memory(moe.n_bytes - in_host, 1000, 1000, on_gpu=True)

    monkeypatch.setattr("coe_native.llama.memory.simulated_memory", simulated)
    whole = simulated(moe.path, coe.ModelOptions()).total
    assert advice_for_gpu(moe, coe.ModelOptions(), whole) == ""
    assert "--n-cpu-moe 1 " in advice_for_gpu(moe, coe.ModelOptions(), whole - 1)
    assert "--n-cpu-moe 1 " in advice_for_gpu(moe, coe.ModelOptions(), whole - of_block[0])
    assert "--n-cpu-moe 2 " in advice_for_gpu(moe, coe.ModelOptions(), whole - of_block[0] - 1)
    assert advice_for_gpu(moe, coe.ModelOptions(), 1000) == ""


LIMITED = """
import resource, sys
import coe_native as coe
from coe_native.llama import memory
from coe_native._native import core
path, n_ctx, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
core.free_gpu_memory()  # has the backends loaded
(used,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
try:
    coe.Model(path, n_ctx=n_ctx, n_batch=64, n_threads=1, n_gpu_layers=0).close()
    print("made")
except coe.InputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_context_that_cannot_be_made_names_one_that_can(model_file: ModelFile) -> None:
    """Memory is granted up to a limit that nobody knows beforehand, as a GPU's is."""
    path, room = str(model_file("qwen3moe", "F32")), 300 << 20

    def attempt(n_ctx: int) -> str:
        line = [sys.executable, "-c", LIMITED, path, str(n_ctx), str(room)]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    said = attempt(2**20)
    assert "1048576" in said
    fits = advised(said)["n_ctx"]
    assert 512 <= fits < 2**20
    assert attempt(fits) == "made\n"


FAILING = """
import resource, sys
import coe_native as coe
model = coe.Model(sys.argv[1], n_ctx=4096, n_batch=4096, n_threads=1, n_gpu_layers=0)
(used,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), used + (1 << 20)))
try:
    model.logits([1] * 4096)
except coe.CoeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_failing_decode_says_what_to_lower(model_file: ModelFile) -> None:
    line = [sys.executable, "-c", FAILING, str(model_file("qwen3moe", "F32"))]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    assert re.search(r"\b4096\b.*-\d.*--batch 2048", run.stdout), run


CRASHES = {
    "ctypes.string_at(0)": "segmentation fault",
    "ctypes.CDLL(None).abort()": "abort",
    "base.ggml_abort(b'/b/a.c', 7, b'odd\\nthing %d', 3)": "a.c:7: odd thing 3",
    "base.ggml_abort(b'a.c', 7, b'CUDA error: out of memory')": "--batch",
    "base.ggml_abort(b'a.c', 7, b'x' * 5000)": "xxx",
    "ctypes.CDLL('libstdc++.so.6')._ZSt9terminatev()": "exception",
    "cut_short()": "file",
}

CRASHING = """
import ctypes, mmap, os, sys, tempfile
from pathlib import Path
import llama_cpp
from coe_native._native import core

def cut_short():
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 20)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        file.truncate(0)
        mapped[1 << 19]

base = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
core.report_crashes("coe-native: ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="crashes as Linux does")
@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_is_one_line(crash: str) -> None:
    run = subprocess.run([sys.executable, "-c", CRASHING + crash], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("coe-native: ")
    assert run.stderr.count("\n") == 1
    assert CRASHES[crash] in run.stderr
    assert len(run.stderr) < 1000


LISTENING = """
import subprocess, threading
crashed, crash = os.pipe()

def wait():
    os.read(crashed, 1)
    print("saved", flush=True)
    os._exit(1)

threading.Thread(target=wait, daemon=True).start()
core.set_crash_listener(crash)
# From another process, because this one's thread would hold the GIL itself.
subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -ABRT {os.getpid()}"])
while True:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="crashes as Linux does")
def test_another_thread_can_save_although_python_code_was_running() -> None:
    run = subprocess.run([sys.executable, "-c", CRASHING + LISTENING], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "saved\n")


def test_a_crash_names_the_model(model_file: ModelFile) -> None:
    path = model_file("qwen3moe", "F32")
    code = f"import coe_native as coe; model = coe.Model({str(path)!r}, n_gpu_layers=0); ctypes.string_at(0)"
    run = subprocess.run([sys.executable, "-c", CRASHING + code], capture_output=True, text=True, check=False)
    assert run.stderr.startswith(f"coe-native: {path}: ")
