"""Devices of llama.cpp's rpc-servers: what is read and written there is read and written over the network.

With a llama.cpp that has them (llama-cpp-python installed with CMAKE_ARGS=-DGGML_RPC=ON); else only the refusal.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.masks import TOLERANCE, check_live_mask
from support.random_models import write_random_model

import coe_native as coe
from coe_native._native import core
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]

with_rpc = pytest.mark.skipif(not core.has_rpc(), reason="this llama.cpp is built without RPC")

SERVER = """
import ctypes, pathlib, sys
import llama_cpp
lib = pathlib.Path(llama_cpp.__file__).parent / "lib"
rpc = ctypes.CDLL(str(next(lib.glob("*ggml-rpc.*"))))
ggml = ctypes.CDLL(str(next(lib.glob("*ggml.*"))))
ggml.ggml_backend_load_all()
ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
cpu = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))
one = ctypes.c_size_t(1)
rpc.ggml_backend_rpc_start_server(sys.argv[1].encode(), None, one, one, ctypes.byref(cpu))
"""


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@dataclass(frozen=True)
class Server:
    endpoint: str
    process: subprocess.Popen[bytes]

    def ticks(self) -> int:
        """Processor time that it has taken."""
        return sum(map(int, Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that offers this machine's CPU."""
    endpoint = free_endpoint()
    host, port = endpoint.split(":")
    process = subprocess.Popen([sys.executable, "-c", SERVER, endpoint], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield Server(endpoint, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@with_rpc
def test_counts_are_those_of_this_machine(
    server: Server, model_file: ModelFile, documents: list[list[int]], family: str
) -> None:
    path = model_file(family, "F32")
    with coe.Model(path, n_ctx=128, n_batch=64, n_sequences=16, rpc=[server.endpoint]) as model:
        remote = coe.profile(model, documents, stats="contribution")
    with coe.Model(path, n_ctx=128, n_batch=64, n_sequences=16) as model:
        local = coe.profile(model, documents, stats="contribution")
    assert remote.n_tokens == local.n_tokens
    moved = np.abs(remote.histograms - local.histograms).sum() / 2
    assert moved <= 0.01 * local.histograms.sum()
    np.testing.assert_allclose(remote.weight_sum.sum(), local.weight_sum.sum(), rtol=1e-3)
    for name in ("norm_sum", "weighted_norm_sum"):  # which are taken there
        ours, theirs = getattr(remote.outputs, name), getattr(local.outputs, name)
        assert np.abs(ours - theirs).sum() <= 0.03 * theirs.sum()


@with_rpc
def test_a_live_mask_works_over_rpc(server: Server, model_file: ModelFile, tmp_path: Path, family: str) -> None:
    """The parent masked over the network is the specialist that runs here."""
    out, most = tmp_path / "specialist.gguf", TOLERANCE.get(family, 1e-5)
    check_live_mask(
        model_file(family, "F32"), out, most, masked_options={"rpc": [server.endpoint]}, pruned_options={}
    )


@with_rpc
def test_graphs_that_end_early_leave_nothing_behind(server: Server, tmp_path: Path) -> None:
    """The last block and the output run on another device than the last router, in a split that an early end does
    not stop: its logits, keys and values come from tensors that were never computed."""
    path = tmp_path / "model.gguf"
    write_random_model(path, "nemotron_h_moe", n_layers=5)  # the last block is attention
    moe = coe.MoeModel(path)
    assert moe.blocks == [1, 3]
    tokens = np.arange(40, dtype=np.int32)

    def decode(session: core.Session) -> None:
        session.decode(tokens, tokens, np.zeros_like(tokens))

    def open_session() -> core.Session:
        options = coe.ModelOptions(
            n_ctx=64, n_batch=64, n_threads=1, n_gpu_layers=2, rpc=(server.endpoint,), f32_kv=True
        )
        return core.Session(os.fsencode(path), options.for_session())

    plain = open_session()
    decode(plain)
    assert plain.has_logits
    watched = open_session()
    watched.watch(moe.blocks, moe.n_experts, [layer.top_k for layer in moe.routed_layers])
    decode(watched)
    assert not watched.has_logits
    with pytest.raises(ValueError, match="logits"):
        watched.logits(0, 1)
    watched.unwatch()
    decode(watched)  # from position 0, which nothing holds any more
    assert watched.has_logits
    np.testing.assert_array_equal(watched.logits(0, 40), plain.logits(0, 40))


@with_rpc
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_later_models_do_not_use_the_rpc_server(
    server: Server, model_file: ModelFile, documents: list[list[int]]
) -> None:
    """A server works for the model that names it, and for no other."""
    path = model_file("olmoe", "F32")
    before = server.ticks()
    with coe.Model(path, n_ctx=512, rpc=[server.endpoint]) as model:
        coe.profile(model, documents * 10)
    after = server.ticks()
    with coe.Model(path, n_ctx=512) as model:
        coe.profile(model, documents * 10)
    assert after > before + 10
    assert server.ticks() <= after + 1


@with_rpc
def test_a_missing_rpc_server_is_reported(model_file: ModelFile) -> None:
    """llama.cpp would end this process."""
    with pytest.raises(coe.InputError, match="rpc-server"):
        coe.Model(model_file("olmoe", "F32"), rpc=[free_endpoint()])


@with_rpc
def test_two_models_share_an_rpc_server(server: Server, model_file: ModelFile) -> None:
    """A server has one client at a time, which is this process, whatever it loads."""
    path = model_file("olmoe", "F32")
    with coe.Model(path, n_ctx=8, rpc=[server.endpoint]) as first:
        before = first.logits([1, 2])
        with first.like(path) as second:
            np.testing.assert_allclose(second.logits([1, 2]), before, rtol=1e-5)
        np.testing.assert_array_equal(first.logits([1, 2]), before)
    with coe.Model(path, n_ctx=8, rpc=[server.endpoint]) as third:
        np.testing.assert_allclose(third.logits([1, 2]), before, rtol=1e-5)


@with_rpc
def test_a_server_that_does_not_speak_rpc_is_reported(model_file: ModelFile) -> None:
    """A server that hangs up, and one that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as impatient:

        def hang_up() -> None:
            impatient.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        with pytest.raises(coe.InputError, match="rpc-server"):
            coe.Model(model_file("olmoe", "F32"), rpc=[f"127.0.0.1:{impatient.getsockname()[1]}"])
        hanging_up.join()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("coe_native.llama.rpc._PATIENCE", 3)
            with pytest.raises(coe.InputError, match=r"\b3 s"):
                coe.Model(model_file("olmoe", "F32"), rpc=[endpoint])


@pytest.mark.skipif(core.has_rpc(), reason="this llama.cpp is built with RPC")
def test_without_rpc_it_is_refused(model_file: ModelFile) -> None:
    with pytest.raises(coe.InputError, match=r"rpc.*install"):
        coe.Model(model_file("olmoe", "F32"), rpc=["localhost:50052"])


@pytest.mark.parametrize("address", ["", "host", "host:", ":50052", "host:port", "a:b:1", "host:1234567"])
def test_bad_addresses_are_refused(model_file: ModelFile, address: str) -> None:
    with pytest.raises(coe.InputError, match="address"):
        coe.Model(model_file("olmoe", "F32"), rpc=[address])


@with_rpc
def test_errors_of_the_helper_process_are_reported(model_file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe_native.llama.rpc._ASK", "import no_such_module")
    with pytest.raises(coe.CoeError, match="ModuleNotFoundError"):
        coe.Model(model_file("olmoe", "F32"), rpc=[free_endpoint()])


@pytest.fixture
def new_server() -> Iterator[Server]:
    """One that has not allocated anything."""
    with serving() as server:
        yield server


@with_rpc
def test_batches_are_larger_on_a_device_that_has_the_memory(new_server: Server) -> None:
    """The server stands for a GPU. Its memory is taken away afterwards, and smaller batches are made."""
    used = int(Path(f"/proc/{new_server.process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    options = {"rpc": (new_server.endpoint,), "n_batch": 64, "n_batch_on_gpu": 2048, "n_threads": 1}
    with coe.Model(demo.MODEL, **options) as model:
        assert model.n_batch == 2048
        tokens = np.arange(2000, dtype=np.int32)
        found = coe.profile(model, [tokens])
    with coe.Model(demo.MODEL, n_batch=2048, n_threads=1) as local:
        expected = coe.profile(local, [tokens])
    assert np.abs(found.histograms - expected.histograms).sum() <= 0.002 * expected.histograms.sum()
    with coe.Model(demo.MODEL, **{**options, "n_gpu_layers": 0, "rpc": ()}) as on_cpu:
        assert on_cpu.n_batch == 64
    before = resource.prlimit(new_server.process.pid, resource.RLIMIT_AS)
    resource.prlimit(new_server.process.pid, resource.RLIMIT_AS, (used + 50_000_000, before[1]))
    try:
        with coe.Model(demo.MODEL, **options) as smaller:
            assert smaller.n_batch == 64
            assert coe.profile(smaller, [tokens]).n_tokens == 2000
    finally:
        resource.prlimit(new_server.process.pid, resource.RLIMIT_AS, before)
