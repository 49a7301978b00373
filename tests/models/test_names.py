"""Models by the names that Ollama and Hugging Face have for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.random_models import split_model

import coe_native as coe
from coe_native.model.names import _chosen, model_path
from coe_native.recipes import demo

OFFICIAL = "registry.ollama.ai/library"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's library with the demo's model under several names."""
    digest = f"sha256:{sha256(demo.MODEL.read_bytes()).hexdigest()}"
    blob = tmp_path / "blobs" / digest.replace(":", "-")
    blob.parent.mkdir()
    shutil.copy(demo.MODEL, blob)
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{0:064d}"}
    model = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    for name in ("gemma4/26b", "gemma4/latest"):
        add_manifest(tmp_path, f"{OFFICIAL}/{name}", {"layers": [template, model]})
    add_manifest(tmp_path, "registry.ollama.ai/somebody/own/latest", {"layers": [model]})
    add_manifest(tmp_path, "hf.co/bartowski/Some-GGUF/Q4_K_M", {"layers": [model]})
    add_manifest(tmp_path, f"{OFFICIAL}/cloud/latest", {"layers": [template]})
    add_manifest(tmp_path, f"{OFFICIAL}/gone/latest", {"layers": [model | {"digest": f"sha256:{1:064d}"}]})
    add_manifest(tmp_path, f"{OFFICIAL}/broken/latest", [1])
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    return tmp_path


def add_manifest(library: Path, name: str, content: Any) -> None:
    path = library / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        *("gemma4:26b", "gemma4", "gemma4:latest", "library/gemma4"),
        *("somebody/own", "hf.co/bartowski/Some-GGUF:Q4_K_M"),
    ],
)
def test_models_of_ollama_are_found_by_name(library: Path, name: str) -> None:
    moe = coe.MoeModel(f"ollama:{name}")
    assert moe.path.parent == library / "blobs"
    assert moe.fingerprint == coe.MoeModel(demo.MODEL).fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma4:27b", "ollama pull gemma4:27b"),
        ("cloud", "GGUF"),
        ("gone", "ollama pull gone"),
        ("broken", "manifest"),
        ("", "write it like"),
        ("../../etc/passwd", "write it like"),
        ("a/b/c/d", "ollama pull"),
        ("gemma4:", "write it like"),
    ],
)
@pytest.mark.usefixtures("library")
def test_models_that_ollama_does_not_have_are_refused(name: str, message: str) -> None:
    with pytest.raises(coe.InputError, match=message) as caught:
        model_path(f"ollama:{name}")
    assert "\n" not in str(caught.value)


SPLIT = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("Q8_0", ["m-Q8_0.gguf"]),
        ("q8_0", ["m-Q8_0.gguf"]),
        ("IQ4_XS", []),
        ("Q4_K", []),
        ("BF16", SPLIT),
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (SPLIT[0], SPLIT),
        ("F16", []),
        ("Q2_K", []),
    ],
)
def test_files_are_chosen_by_quantisation_or_name(wanted: str, expected: list[str]) -> None:
    files = ["mmproj-F16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q2_K-00001-of-00002.gguf", *SPLIT[::-1]]
    assert _chosen(files, wanted) == expected


def test_the_first_file_is_taken_where_none_is_the_usual_one() -> None:
    assert _chosen(["b-Q6_K.gguf", "a-Q5_K.gguf"], "") == ["a-Q5_K.gguf"]
    assert _chosen([], "") == []


class _Hub(BaseHTTPRequestHandler):
    """The part of Hugging Face's hub that lists and sends the files of one repository."""

    files: dict[str, bytes]
    requests: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.requests.append(path)
        file = path.removeprefix("/owner/model-GGUF/resolve/main/")
        if path.startswith("/api/models/owner/model-GGUF"):
            names = [{"rfilename": name} for name in self.files]
            facts = {"id": "owner/model-GGUF", "sha": "a" * 40, "siblings": names}
            self._send(json.dumps(facts).encode(), with_body)
        elif file in self.files:
            self._send(self.files[file], with_body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[_Hub]]]:
    shards = split_model(demo.MODEL, tmp_path, 2)

    class Hub(_Hub):
        files = {f"Q8_0/{path.name}": path.read_bytes() for path in shards}  # noqa: RUF012
        requests: list[str] = []  # noqa: RUF012

    Hub.files |= {"mmproj-F16.gguf": b"GGUF", "README.md": b"# Model"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Hub
    server.shutdown()
    server.server_close()


def inspect(name: str, endpoint: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "coe_native", "inspect", name, "--json"]
    environment = {**os.environ, **own, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)


def test_models_of_the_hub_are_downloaded_once(tmp_path: Path, hub: tuple[str, type[_Hub]]) -> None:
    endpoint, served = hub
    cache = tmp_path / "cache"
    fingerprint = coe.MoeModel(demo.MODEL).fingerprint
    for name in ("hf:owner/model-GGUF", "hf:owner/model-GGUF:q8_0"):
        facts = json.loads(inspect(name, endpoint, cache).stdout)
        assert (facts["files"], facts["fingerprint"]) == (2, fingerprint)
    n_requests = len(served.requests)
    assert n_requests <= 7, "a list, and two requests for each file"
    done = inspect("hf:owner/model-GGUF", endpoint, cache, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout)["files"] == 2
    assert len(served.requests) == n_requests, "the cache is enough"


@pytest.mark.parametrize(
    ("name", "offline", "message"),
    [
        ("hf:owner/model-GGUF:Q3_K", "0", "Q8_0"),
        ("hf:owner/other", "0", "hf:owner/other"),
        ("hf:owner/model-GGUF", "1", "offline"),
        ("hf:owner", "0", "OWNER/NAME"),
    ],
)
def test_models_that_the_hub_does_not_have_are_refused(
    tmp_path: Path, hub: tuple[str, type[_Hub]], name: str, offline: str, message: str
) -> None:
    done = inspect(name, hub[0], tmp_path / "cache", HF_HUB_OFFLINE=offline)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message.lower() in done.stderr.lower()
