"""Requests and connections that would end `coe-native serve`, hang it, fill its memory, or let other sites use it.

The server is the real one, in a process of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.llamas import load
from support.model_files import append_entry
from support.serving_client import DEMO, SECRET, Server, line

import coe_native as coe
from coe_native.model.gguf_file import encode_entry

EXPENSIVE = 'root ::= s\ns ::= "a" s "b" | "a" s "c" | ""'
"""Each further "a" doubles what llama.cpp has to keep."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("serve"))
    yield server
    server.end()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, which are gone at the end."""
    servers: list[Server] = []
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}

    def start(*options: str, **more: Any) -> Server:
        servers.append(Server(tmp_path, *options, environment=state, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def memory_of(server: Server) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def ask(server: Server, head: str, body: bytes = b"", wait: float = 30.0) -> tuple[int, bytes]:
    """The status and the whole answer to a request that is written by hand."""
    with socket.create_connection(("127.0.0.1", port_of(server)), wait) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        said = b""
        while part := client.recv(1 << 16):
            said += part
    return int(said.split()[1]) if said else 0, said


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/extras/detokenize", {"tokens": [10**6]}, 422),
        ("/extras/detokenize", {"tokens": [-1]}, 422),
        ("/extras/detokenize", {"tokens": [2**40]}, 422),
        ("/extras/detokenize", {"tokens": [5] * 100_000}, 413),
        ("/extras/detokenize", {"tokens": [*range(4096)]}, 200),
        ("/extras/detokenize", {"tokens": "abc"}, 422),
        ("/extras/tokenize", {"input": "x " * (3 << 19)}, 200),
        ("/extras/tokenize", {"input": "x" * (3 << 20)}, 400),
        ("/extras/tokenize", {"input": None}, 422),
        ("/extras/tokenize/count", {"input": "\ud800"}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= ("}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": 'other ::= "a"'}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": 'root ::= root "a"'}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= undefined"}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= " + "(" * 200_000}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= " + '("a"{0,2000}){0,2000}'}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": EXPENSIVE, "logit_bias": {"2699": 100}}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": 'root ::= "\\x00"'}, 400),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= [a-z]+", "repeat_penalty": 0}, 200),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"99999999": 1.0}}, 422),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"-1": 1.0}}, 422),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"x": 1.0}}, 422),
        ("/v1/completions", {"prompt": "x", "logit_bias": {str(i): -1e38 for i in range(4096)}}, 200),
        ("/v1/completions", b'{"prompt": "x", "temperature": NaN}', 400),
        ("/v1/completions", b'{"prompt": "x", "temperature": 1e999}', 400),
        ("/v1/completions", b'{"prompt": "x", "temperature": -Infinity}', 400),
        ("/v1/completions", {"prompt": "x", "temperature": 1e-45}, 200),
        ("/v1/completions", {"prompt": "x", "temperature": 1e38}, 200),
        ("/v1/completions", {"prompt": "x", "temperature": -1.0}, 200),
        ("/v1/completions", {"prompt": "x", "repeat_penalty": 1e300, "frequency_penalty": 2}, 200),
        ("/v1/completions", {"prompt": "x", "mirostat_mode": 1, "mirostat_tau": 0.0}, 200),
        ("/v1/completions", {"prompt": "x", "seed": -1}, 422),
        ("/v1/completions", {"prompt": "x", "seed": 2**32}, 422),
        ("/v1/completions", b'{"prompt": "x", "top_k": 1' + b"0" * 400 + b"}", 400),
        ("/v1/completions", {"prompt": "x", "top_k": 2**31}, 422),
        ("/v1/completions", {"prompt": ["x", "y"]}, 200),
        ("/v1/completions", {"prompt": [1] * 2_000_000}, 413),
        ("/v1/completions", {"prompt": [[]] * 16_000}, 400),
        ("/v1/completions", {"prompt": "x", "stop": ["stop"] * 400_000}, 413),
        ("/v1/completions", b'{"a":' * 60_000 + b"1" + b"}" * 60_000, 400),
        ("/v1/completions", {"prompt": "x " * 5000}, 400),
        ("/v1/completions", {"prompt": "x", "suffix": "y" * 100}, 200),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, 422),
        ("/v1/completions", {"prompt": "00", "temperature": 0.0, "suffix": ""}, 400),  # bytes that are no UTF-8
        ("/v1/completions", {"prompt": "x", "logprobs": 5}, 422),
        ("/v1/completions", b"{", 400),
        ("/v1/completions", b"\xff\xfe", 400),
        ("/v1/completions", b"[" * 100_000, 400),
        ("/v1/completions", b"[]", 400),
        ("/v1/completions", b"", 400),
        ("/v1/chat/completions", {"messages": []}, 200),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, 422),
        ("/routing/mask", b"{", 422),
        ("/routing/mask", b"[" * 8_000_000, 422),
        ("/routing/mask", b"[" + b"[],[" * 2_000_000, 422),
        ("/v1/completions", {"prompt": "x", "logit_bias_type": "tokens", "logit_bias": {"ab" * 4000: 1}}, 422),
        ("/v1/completions", {"prompt": "x", "logprobs": 1000}, 422),
        ("/routing/mask", {"format": "x"}, 422),
    ],
)
def test_no_request_ends_the_server(shared: Server, path: str, body: object, status: int) -> None:
    options = {"max_tokens": 12} if isinstance(body, dict) and path.startswith("/v1") else {}
    code, said = shared.post(path, body | options if isinstance(body, dict) else body)
    assert code == status, said
    if code >= 400:
        assert said["error"]["message"]
    assert shared.process.poll() is None
    assert shared.complete("def ", 2)


@pytest.mark.parametrize(
    ("schema", "status"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, 200),
        ({"type": "array", "items": {"type": "string"}, "minItems": 10**9}, 200),
        ({"$ref": "https://example.com/schema"}, 200),
        ({"$ref": "#/nowhere"}, 200),
    ],
)
def test_schemas_are_followed_or_refused(shared: Server, schema: dict[str, Any], status: int) -> None:
    """llama-cpp-python takes the grammar of any JSON where a schema cannot be followed."""
    code, said = shared.post(
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 8,
            "response_format": {"type": "json_object", "schema": schema},
        },
    )
    assert code == status, said
    assert said["choices"][0]["message"]["content"].lstrip()[:1] in ("{", "[", ""), said


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x", "grammar": "root ::= ("},
        {"prompt": "x", "logit_bias": {"99999999": 1.0}},
        {"prompt": "x " * 5000},
        {"prompt": "x", "grammar": EXPENSIVE, "logit_bias": {"2699": 100}},
        {"prompt": "x", "logit_bias": {"a" * 8000: 1}, "logit_bias_type": "tokens"},
    ],
)
def test_a_stream_says_what_is_wrong(shared: Server, body: dict[str, Any]) -> None:
    _, said = shared.post("/v1/completions", body | {"stream": True, "max_tokens": 12})
    events = [json.loads(row[6:]) for row in str(said).splitlines() if row.startswith("data: {")]
    assert events[-1]["error"]["message"]
    assert shared.complete("def ", 2)


@given(
    st.fixed_dictionaries(
        {"prompt": st.text(max_size=20), "max_tokens": st.integers(1, 3)},
        optional={
            "temperature": st.floats(),
            "top_p": st.floats(),
            "min_p": st.floats(),
            "top_k": st.integers(),
            "repeat_penalty": st.floats(),
            "presence_penalty": st.floats(),
            "frequency_penalty": st.floats(),
            "mirostat_mode": st.integers(0, 3),
            "mirostat_tau": st.floats(0, 10),
            "mirostat_eta": st.floats(0.001, 1),
            "min_tokens": st.integers(-1, 5),
            "seed": st.integers(),
            "echo": st.booleans(),
            "stop": st.lists(st.text(max_size=3), max_size=3),
            "suffix": st.text(max_size=5),
            "logit_bias": st.dictionaries(st.integers(-5, 5000).map(str) | st.text(max_size=3), st.floats()),
            "logit_bias_type": st.sampled_from(["tokens", "input_ids"]),
            "grammar": st.sampled_from(["", "root ::= [a-z]*", 'root ::= "x" root | "y"', "root ::= [^a]"])
            | st.text(max_size=12),
        },
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sampling_options_end_the_server(shared: Server, body: dict[str, Any]) -> None:
    code, said = shared.post("/v1/completions", json.dumps(body).encode("utf-8", "surrogatepass"))
    assert code in (200, 400, 422), said


@pytest.mark.parametrize("grammar", ['root ::= ("yes" | "no") " " [0-9]+', "root ::= [a-z ]*", 'root ::= "yes"'])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 3}])
def test_a_grammar_does_what_it_does_in_llama_cpp(shared: Server, grammar: str, options: dict[str, Any]) -> None:
    import llama_cpp

    llama = load(DEMO, n_ctx=512, n_batch=512, flash_attn=True)
    plain = llama(
        "The answer: ",
        max_tokens=10,
        grammar=llama_cpp.LlamaGrammar.from_string(grammar),
        **{"temperature": 0.0} | options,
    )
    _, said = shared.post(
        "/v1/completions",
        {"prompt": "The answer: ", "max_tokens": 10, "grammar": grammar, "temperature": 0.0, **options},
    )
    assert said["choices"][0]["text"] == plain["choices"][0]["text"]
    assert said["choices"][0]["text"]


def with_template(directory: Path, template: str) -> Path:
    return append_entry(DEMO, directory / "model.gguf", encode_entry("tokenizer.chat_template", template))


CHAT = {"messages": [{"role": "user", "content": f"What is a {SECRET}?"}], "max_tokens": 4, "temperature": 0.0}


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a' * 10**10 }}",  # already when it is compiled
    ],
)
def test_a_hostile_chat_template_is_cut_off(tmp_path: Path, started: Callable[..., Server], template: str) -> None:
    server = started(model=with_template(tmp_path, template))
    before = memory_of(server)
    with ThreadPoolExecutor(1) as threads:
        chat = threads.submit(server.post, "/v1/chat/completions", CHAT)
        started_at = time.monotonic()
        assert server.routing()["tokens"]["prompts"] == 0  # others are answered meanwhile
        assert time.monotonic() - started_at < 3
        code, said = chat.result()
    assert code == 400, said
    assert "chat template" in said["error"]["message"]
    assert time.monotonic() - started_at < 20
    assert memory_of(server) - before < 200 << 20
    assert server.complete("def ", 2)
    # It ends at once, in the middle of the next one.
    with ThreadPoolExecutor(1) as threads:
        threads.submit(server.post, "/v1/chat/completions", CHAT)  # whatever comes of it
        time.sleep(0.5)
        started_at = time.monotonic()
        assert "live" in server.end(signal.SIGTERM)
        assert time.monotonic() - started_at < 15


def test_a_chat_template_is_followed(tmp_path: Path, started: Callable[..., Server]) -> None:
    """As llama-cpp-python follows it."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}{{ tools | tojson if tools else '' }}"
    )
    model = with_template(tmp_path, template)
    llama = load(model, n_ctx=512, n_batch=512, flash_attn=True)
    plain = llama.create_chat_completion(CHAT["messages"], max_tokens=4, temperature=0.0)
    server = started(model=model)
    code, said = server.post("/v1/chat/completions", CHAT)
    assert code == 200, said
    assert said["choices"][0]["message"] == plain["choices"][0]["message"]
    assert said["usage"] == plain["usage"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_not_read_before_the_key(started: Callable[..., Server], chunked: bool) -> None:
    server = started(key="right")
    before = memory_of(server)
    head = "POST /v1/completions HTTP/1.1\nHost: x\nAuthorization: Bearer wrong\n"
    head += "Transfer-Encoding: chunked" if chunked else f"Content-Length: {256 << 20}"
    piece = bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", port_of(server)), 30) as client:
        client.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(256):
                client.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
        assert memory_of(server) - before < 30 << 20
        with contextlib.suppress(OSError):
            assert (b" 411 " if chunked else b" 401 ") in client.recv(100)
    assert server.complete("def ", 2)


def test_a_body_of_wrong_values_is_refused_at_once(shared: Server) -> None:
    """An error for each of its values would take seconds and gigabytes, and other clients would wait meanwhile."""
    before, started_at = memory_of(shared), time.monotonic()
    for body in (
        {"prompt": [1] * 1_300_000},
        {"messages": [1] * 16_000},
        {"logit_bias": {str(i): "x" for i in range(16_000)}},
    ):
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        code, said = shared.post(path, body)
        assert code in (400, 413, 422)
        assert len(said["error"]["message"]) < 2000
    assert time.monotonic() - started_at < 10
    assert memory_of(shared) - before < 300 << 20


@pytest.mark.parametrize("key", ["", "right"])
def test_small_chunks_hold_up_nobody(started: Callable[..., Server], key: str) -> None:
    """Each would be parsed in the thread that serves all clients, before the key is looked at."""
    server = started(key=key)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    clients = []
    for _ in range(30):
        client = socket.create_connection(("127.0.0.1", port_of(server)))
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.sendall(head.encode() + b"\r\n\r\n" + b"1\r\n \r\n" * 30_000)
        clients.append(client)
    started_at = time.monotonic()
    assert server.routing()["tokens"]
    assert time.monotonic() - started_at < 2
    for client in clients:
        client.close()


def test_requests_of_clients_that_have_gone_do_not_pile_up(started: Callable[..., Server]) -> None:
    server = started()
    before = memory_of(server)
    body = json.dumps({"prompt": "ab " * 1_300_000, "max_tokens": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\nContent-Length: {len(body)}"
    for _ in range(60):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port_of(server))) as client:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
    assert memory_of(server) - before < 500 << 20
    # It ends in good order while one of them is at work.
    last = server.end(signal.SIGTERM)
    assert "saved" in last


def test_a_body_has_a_largest_size(shared: Server) -> None:
    before = memory_of(shared)
    for _ in range(4):
        code, _ = shared.post("/v1/completions", b" " * (8 << 20))
        assert code == 413
    code, said = ask(
        shared,
        f"POST /v1/completions HTTP/1.1\nHost: 127.0.0.1:{port_of(shared)}\nContent-Length: {1 << 40}\n"
        "Expect: 100-continue",
    )
    assert code == 413, said
    assert memory_of(shared) - before < 40 << 20


def test_bodies_without_content_are_not_json(shared: Server) -> None:
    assert ask(shared, f"GET /routing HTTP/1.1\nHost: 127.0.0.1:{port_of(shared)}\nConnection: close")[0] == 200


SHORT = """
import coe_native.live.connections as connections, coe_native.live.gate as gate
connections.HEADER_SECONDS, gate.BODY_SECONDS, connections.WRITE_SECONDS = 2.0, 2.0, 2.0
"""


def is_closed(client: socket.socket) -> bool:
    client.settimeout(15.0)
    with contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass
    return True


def test_half_open_connections_are_closed(started: Callable[..., Server]) -> None:
    """And meanwhile the server serves others, once there is room."""
    server = started(setup=SHORT)
    clients = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(120)]
    for i, client in enumerate(clients[:40]):
        with contextlib.suppress(OSError):
            client.sendall(b"GET /routing HTTP/1.1\r\nHost: " if i % 2 else b"G")
    time.sleep(1.0)
    # Those that say a little now and then are not spared.
    for client in clients[:40]:
        with contextlib.suppress(OSError):
            client.sendall(b"x")
    for client in clients:
        assert is_closed(client)
        client.close()
    assert server.complete("def ", 2)
    assert psutil.Process(server.process.pid).num_fds() < 60


def test_an_incomplete_body_is_not_waited_for(started: Callable[..., Server]) -> None:
    server = started(setup=SHORT)
    head = f"POST /v1/completions HTTP/1.1\nHost: 127.0.0.1:{port_of(server)}\nContent-Length: 100"
    code, said = ask(server, head, b"{")
    assert code == 408, said
    # The next request of a connection that has had one.
    with socket.create_connection(("127.0.0.1", port_of(server))) as client:
        client.sendall(f"GET /routing HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\n\r\nGET /rou".encode())
        assert is_closed(client)


def test_a_client_that_does_not_read_holds_up_nobody(started: Callable[..., Server]) -> None:
    """The answer to it would wait for ever, and all others for that answer."""
    server = started(setup=SHORT)
    body = json.dumps({"prompt": "x", "max_tokens": 400, "stream": True, "logit_bias": {"1": -100}}).encode()
    clients = []
    for _ in range(3):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect(("127.0.0.1", port_of(server)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port_of(server)}\r\nContent-Length: {len(body)}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        clients.append(client)
    assert server.complete("def ", 2)
    for client in clients:
        client.close()


def test_too_few_file_descriptors_are_reported(tmp_path: Path, started: Callable[..., Server]) -> None:
    """The log stays short, and the server serves again when the connections are gone."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    server = started(setup=SHORT + limit)
    clients = []
    with contextlib.suppress(OSError):
        clients = [socket.create_connection(("127.0.0.1", port_of(server)), 5) for _ in range(300)]
    time.sleep(3.0)
    assert (tmp_path / "log").stat().st_size < 5000
    for client in clients:
        client.close()
    assert server.complete("def ", 2)
    too_few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    run = subprocess.run(
        line(setup=too_few), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 1
    assert "ulimit -n" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: 127.0.0.1:PORT", 200),
        ("Host: LOCALHOST:PORT", 200),
        ("Host: [::1]:PORT", 200),
        ("Host: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:PORT", 200),
        ("Host: 127.0.0.1", 403),
        ("Host: 127.0.0.1:1", 403),
        ("Host: evil.example:PORT", 403),
        ("Host: evil@127.0.0.1:PORT", 403),
        ("Host: 127.0.0.1:PORT#.evil.example", 403),
        ("Host: 127.0.0.1.evil.example:PORT", 403),
        ("Host: localhost.:PORT", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:3000", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: http://localhost:PORT", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: https://127.0.0.1:PORT", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: null", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:PORT\nOrigin: http://evil.example", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:PORT, http://evil.example", 403),
        ("Host: 127.0.0.1:PORT\nOrigin: http://127.0.0.1:PORT@evil.example", 403),
        ("Host: 127.0.0.1:PORT\nHost: evil.example", 400),
    ],
)
def test_hosts_and_origins_are_compared_strictly(shared: Server, headers: str, status: int) -> None:
    given = headers.replace("PORT", str(port_of(shared)))
    for method in ("GET", "OPTIONS"):
        code, said = ask(shared, f"{method} /routing HTTP/1.1\n{given}\nConnection: close")
        assert (code == 200 or method == "OPTIONS") == (status == 200) or code == status, said
        if status != 200:
            assert code == status, said


def test_every_path_needs_the_key(started: Callable[..., Server]) -> None:
    server = started(key="right")

    def status_of(path: str, *authorization: str) -> int:
        keys = "".join(f"\nAuthorization: {value}" for value in authorization)
        return ask(server, f"GET {path} HTTP/1.1\nHost: x{keys}\nConnection: close")[0]

    for path in ("/", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", "/routing", "/v1/models"):
        assert status_of(path) == 401, path
        assert status_of(path, "Bearer wrong") == 401, path
        assert status_of(path, "Bearer right", "Bearer right") == 401
        for near in (
            "Bearer righ",
            "Bearer rightt",
            "Bearer  right",
            "Basic right",
            "right",
            "Bearer ",
            "Bearer r\xefght",
        ):
            assert status_of(path, near) == 401, near
    assert status_of("/openapi.json", "bearer right") == 200
    for path in ("/docs", "/redoc"):  # they load scripts from elsewhere
        assert status_of(path, "Bearer right") == 404


def test_pages_that_have_the_key_are_served(started: Callable[..., Server]) -> None:
    """A browser asks first, without the key, whether it may send one."""
    server = started(key="right")
    asking = "Host: x\nOrigin: http://localhost:3000\nAccess-Control-Request-Method: POST\nConnection: close"
    code, said = ask(
        server, f"OPTIONS /v1/completions HTTP/1.1\n{asking}\nAccess-Control-Request-Headers: authorization"
    )
    assert code == 200, said
    assert b"access-control-allow-origin: http://localhost:3000" in said
    request = "Host: x\nOrigin: http://localhost:3000\nAuthorization: Bearer right\nConnection: close"
    assert ask(server, f"GET /routing HTTP/1.1\n{request}")[0] == 200
    assert ask(server, f"OPTIONS /routing HTTP/1.1\n{request.replace('right', 'wrong')}")[0] == 401
    # Nothing of its body is read.
    code, said = ask(server, f"OPTIONS /v1/completions HTTP/1.1\n{asking}\nContent-Length: {1 << 30}", b"{broken")
    assert code == 200, said


def test_answers_name_no_directories(tmp_path: Path, started: Callable[..., Server]) -> None:
    (tmp_path / "private").mkdir()
    out = tmp_path / "private" / "live.gguf"
    server = started("-o", str(out))
    answers: list[object] = [
        server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}),
        server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": True}),
        server.post("/v1/chat/completions", {"messages": [], "max_tokens": 2}),
        server.post("/v1/completions", {"prompt": "x " * 5000}),
        server.post("/v1/completions", {"prompt": "x", "logprobs": 3}),
        server.post("/routing/save", b""),
        server.post("/routing/mask", {"format": "coe-mask"}),
        server.routing(),
    ]
    answers.append(ask(server, f"GET /v1/models HTTP/1.1\nHost: 127.0.0.1:{port_of(server)}\nConnection: close"))
    (tmp_path / "private").rename(tmp_path / "gone")
    (tmp_path / "private").write_text("no directory")
    answers.append(server.post("/routing/save", b""))
    for answer in answers:
        assert str(DEMO.parent) not in str(answer)
        assert str(tmp_path) not in str(answer)


def test_nothing_of_a_request_is_logged(tmp_path: Path, started: Callable[..., Server]) -> None:
    server = started()
    for body in (
        {"prompt": SECRET, "grammar": f'root ::= "{SECRET}" ('},
        {"prompt": SECRET, "grammar": f"root ::= {SECRET}"},
        {"prompt": SECRET, "logit_bias": {SECRET: 1}},
        {"prompt": f"{SECRET} " * 3000},
        {"prompt": SECRET, "logprobs": 3},
        {"prompt": {"text": SECRET}},
        {"prompt": SECRET, "temperature": SECRET},
    ):
        for stream in (False, True):
            server.post("/v1/completions", body | {"stream": stream})
    server.post("/v1/completions", f'{{"prompt": "{SECRET}'.encode())
    assert SECRET not in (tmp_path / "log").read_text()
    server.end()


def test_a_random_key_is_printed_once(tmp_path: Path, started: Callable[..., Server]) -> None:
    server = started("--api-key", "auto")
    (said,) = (row for row in (tmp_path / "log").read_text().splitlines() if row.startswith("API key: "))
    key = said.removeprefix("API key: ")
    assert len(key) >= 40
    assert server.post("/v1/completions", {"prompt": "x"})[0] == 401
    server.key = key
    assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})[0] == 200


JSON = {"Content-Type": "application/json"}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def test_a_unix_socket_for_this_user_alone(tmp_path: Path, started: Callable[..., Server]) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_by_a_killed_server:
        left_by_a_killed_server.bind(str(path))
    server = started("--uds", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connection = UnixConnection(path)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 3}), JSON)
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.load(answer)["choices"]
    connection.close()
    for taken, why in (("s", "another program listens on it"), ("file", "is not a socket")):
        (tmp_path / "file").write_text("x")
        run = subprocess.run(
            line("--uds", taken, "-o", "other.gguf"), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode in (1, 2)
        assert why in run.stderr
    assert "live" in server.end()
    assert not path.exists()


@pytest.mark.parametrize("how", ["vanished", "became a file"])
def test_counts_are_saved_elsewhere_where_the_directory_is_gone(
    tmp_path: Path, started: Callable[..., Server], how: str
) -> None:
    (tmp_path / "out").mkdir()
    server = started("-o", "out/live.gguf")
    server.complete("def ", 3)
    (tmp_path / "out").rmdir()
    if how == "became a file":
        (tmp_path / "out").write_text("x")
    last = server.end()
    assert "live" in last
    saved = sorted((tmp_path / "state" / "coe-native").iterdir())
    assert len(saved) == 3
    assert str(saved[-1].parent) in last
    assert "saved as" in (tmp_path / "log").read_text()
    assert max(coe.RoutingProfile.load(path).n_tokens for path in saved) >= 4


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGHUP])
def test_counts_are_saved_on_the_way_down(
    tmp_path: Path, started: Callable[..., Server], number: signal.Signals
) -> None:
    server = started()
    server.complete("def ", 3)
    os.kill(server.process.pid, number)
    server.process.wait(30)
    assert coe.RoutingProfile.load(tmp_path / "live.gguf").n_tokens >= 4
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "damaged" not in log
    assert server.process.returncode == (0 if number == signal.SIGHUP else 1)
    if number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE):
        assert "report" in log


def test_an_exception_in_llama_cpp_costs_no_counts(tmp_path: Path, started: Callable[..., Server]) -> None:
    """As its detokenizer throws for unknown tokens, in a thread that waits for it: the checks are taken away."""
    unchecked = (
        "import coe_native.live.llama_cpp_python.requests as requests; requests.check_tokens = lambda *_: None"
    )
    server = started(setup=unchecked)
    server.complete("def ", 3)
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.post("/extras/detokenize", {"tokens": [10**6]})
    server.process.wait(30)
    assert server.process.returncode == 1
    assert coe.RoutingProfile.load(tmp_path / "live.gguf").n_tokens >= 4
    log = (tmp_path / "log").read_text()
    assert "exception" in log
    assert "report" in log
    assert "live.gguf" in log
