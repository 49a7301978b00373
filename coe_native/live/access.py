"""Who may talk to the server, and how much: address and key, middleware in front of the application, and limits on
connections. Nothing here knows about models."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import os
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from coe_native.errors import CoeError, InputError
from coe_native.files.atomic import resolved

HEADER_SECONDS = 10.0
"""For a client to send a request's header, from the connection or from the last answer on."""

BODY_SECONDS = 60.0
_DISCARD_SECONDS = 2.0
WRITE_SECONDS = 30.0
"""For a client to take what it was sent, when no more fits into the connection."""

_PIECE = 4096
_NO_CHUNKS = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

MOST_CONNECTIONS = 64
_MOST_REQUESTS = 64
_MOST_BYTES_IN_PROGRESS = 32 << 20
"""Of bodies; a request takes some three times as much, also while it waits and its client has gone."""

BACKLOG = 16
"""Connections that the system accepts at once, before one of them can be refused."""

_OTHER_FILES = 64
"""File descriptors that the server needs beside connections."""


@dataclass(frozen=True)
class Address:
    """Where to listen, and the key that clients must give.

    uds: path of a Unix socket, in place of host and port; only this user can connect to it.

    Raises:
        InputError: Others could reach the address without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    uds: Path | None = None

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise InputError("an API key must have at least one character")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise InputError("an API key must have printable ASCII characters only: it is sent in an HTTP header")
        if self.uds is None and self.api_key is None and not self._is_local:
            raise InputError(
                f"{self.host}: can be reached from other machines; set an API key (--api-key), or listen on "
                "127.0.0.1"
            )

    @property
    def _is_local(self) -> bool:
        return all(ipaddress.ip_address(address[0]).is_loopback for _, address in self._found)

    @property
    def _found(self) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise InputError(f"{self.host}: is not an address of this machine: {error}") from error
        return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]

    @contextlib.contextmanager
    def listen(self) -> Iterator[tuple[socket.socket, str]]:
        """Listen while the block runs. Yields the socket, and the URL or path that clients need.

        Raises:
            CoeError: The address is taken, or not this machine's.
        """
        if self.uds is not None:
            with _unix_socket(self.uds) as listener:
                yield listener, str(self.uds)
            return
        family, address = self._found[0]
        try:
            listener = socket.create_server(address, family=family)
        except OSError as error:
            raise CoeError(f"{self.host}:{self.port}: cannot be listened on: {error.strerror or error}") from error
        with listener:
            host, port = listener.getsockname()[:2]
            yield listener, f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def own_hosts(self, port: int) -> frozenset[str]:
        """Return what a client of this machine may write into the Host header."""
        names = {"localhost", "127.0.0.1", "[::1]", f"[{self.host}]" if ":" in self.host else self.host.lower()}
        hosts = {f"{name}:{port}" for name in names}
        return frozenset(hosts | names if port == 80 else hosts)


def new_key() -> str:
    """Return a random API key."""
    return secrets.token_urlsafe(32)


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a Unix socket of mode 600, and remove it when the block ends."""
    if not hasattr(socket, "AF_UNIX"):
        raise InputError(f"{path}: this system has no Unix sockets; use --host and --port")
    path = resolved(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            _remove_unused_socket(path)
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
        except OSError as error:
            raise CoeError(f"{path}: cannot be listened on: {error.strerror or error}") from error
        ours = path.stat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(ours, path.stat()):
                    path.unlink()


def _remove_unused_socket(path: Path) -> None:
    """Remove a socket that a killed server has left."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise InputError(f"{path}: exists and is not a socket; choose another name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(5.0)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise CoeError(f"{path}: another program listens on it; choose another name")


@dataclass(frozen=True)
class BodyLimits:
    """Limits of the bodies that are posted to a path.

    n_bytes: Text for a context of a million tokens has about as many.
    n_values: Values in the JSON, such as messages and what they consist of; None where the application parses it.
    may_be_empty: Whether nothing need be posted.
    """

    n_bytes: int = 4 << 20
    n_values: int | None = 1 << 14
    may_be_empty: bool = False


class Gate:
    """Middleware that lets a request through when its sender may use the server and its body is small, complete
    and JSON. All that is refused is refused before the application sees any of it.

    api_key: Key that each request must give as ``Authorization: Bearer KEY``.
    hosts: Without a key, the only Host headers that are served. A browser that shows another site's page sends
        that page's Origin, or a Host by which the site has directed its own name to this machine.
    limits: Limits of paths that have others than most.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        hosts: frozenset[str] | None,
        limits: Mapping[str, BodyLimits] | None = None,
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._hosts = hosts
        self._limits = limits or {}
        self._n_requests = 0
        self._n_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if self._is_preflight(scope):
            # A browser asks whether a page may send its key; the application answers without reading anything.
            await self._app(scope, _replayed(b"", receive), send)
            return
        refusal = self._refusal(scope)
        if refusal is None and self._n_requests >= _MOST_REQUESTS:
            refusal = _too_many()
        if refusal is not None:
            await self._refuse(refusal, scope, receive, send)
            return
        limits = self._limits.get(scope["path"], BodyLimits())
        body = b""
        self._n_requests += 1
        try:
            body, refusal = await _read_body(scope, receive, limits.n_bytes)
            self._n_bytes += len(body)
            if refusal is not None:
                await self._refuse(refusal, scope, receive, send)
                return
            answer = await self._check(body, scope["method"], limits) or self._app
            await answer(scope, _replayed(body, receive), send)
        finally:
            self._n_requests -= 1
            self._n_bytes -= len(body)

    async def _check(self, body: bytes, method: str, limits: BodyLimits) -> JSONResponse | None:
        if self._n_bytes > _MOST_BYTES_IN_PROGRESS:
            return _too_many()
        may_be_empty = method != "POST" or limits.may_be_empty
        if limits.n_values is None or (may_be_empty and not body.strip()):
            return None
        return await anyio.to_thread.run_sync(_json_error, body, limits.n_values)

    async def _refuse(self, refusal: JSONResponse, scope: Scope, receive: Receive, send: Send) -> None:
        await _discard(scope, receive)
        refusal.headers["connection"] = "close"
        await refusal(scope, receive, send)

    def _is_preflight(self, scope: Scope) -> bool:
        asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
        return self._key is not None and scope["method"] == "OPTIONS" and asks

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = scope["headers"]
        if self._key is not None:
            given = [value.partition(b" ") for name, value in headers if name == b"authorization"]
            keys = [key for scheme, _, key in given if scheme.lower() == b"bearer"]
            if len(given) != 1 or not keys or not hmac.compare_digest(keys[0], self._key):
                return _error(401, "invalid API key", "authentication_error")
        elif self._hosts is not None:
            asked = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
            origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
            if len(asked) != 1 or asked[0] not in self._hosts:
                return _error(403, f"without an API key, the Host must be one of {', '.join(sorted(self._hosts))}")
            if origins and origins != [f"http://{asked[0]}"]:
                return _error(403, "without an API key, pages of other sites and ports are not served")
        return None


async def _read_body(scope: Scope, receive: Receive, most: int) -> tuple[bytes, JSONResponse | None]:
    """Return a body of at most `most` bytes, or the answer that refuses it."""
    too_large = _error(413, f"the body has more than {most} bytes")
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if any(not length.isdigit() or int(length) > most for length in lengths):
        return b"", too_large
    parts: list[bytes] = []
    try:
        with anyio.fail_after(BODY_SECONDS):
            message: Message = {"more_body": True}
            while message.get("more_body"):
                message = await receive()
                if message["type"] != "http.request":  # the client has gone
                    return b"", _error(400, "the body is not complete")
                parts.append(message.get("body", b""))
                if sum(map(len, parts)) > most:
                    return b"", too_large
    except TimeoutError:
        return b"", _error(408, f"the body did not come within {BODY_SECONDS:g} seconds")
    return b"".join(parts), None


def _too_many() -> JSONResponse:
    return _error(503, "too many requests are waiting; try again later", "overloaded_error")


async def _discard(scope: Scope, receive: Receive) -> None:
    """Read what a refused client is about to send, for a moment: it would not see the answer otherwise."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # it waits for the answer
    with anyio.move_on_after(_DISCARD_SECONDS):
        while (await receive()).get("more_body"):
            pass


def _json_error(body: bytes, most_values: int) -> JSONResponse | None:
    """Return what is wrong with a body that is not JSON, or has numbers of more than 64 bits, text that is not
    Unicode, or more values than that: checking the type of each takes long, and much memory for those that are
    wrong."""

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def finite(text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError("a number is too large")
        return value

    def whole(text: str) -> int:
        if len(text) > 20:
            raise ValueError("a number is too large")
        return int(text)

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=no_constant, parse_float=finite, parse_int=whole)
        if b"\\u" in body:  # half of a surrogate pair can be written so
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        return _error(400, "the body is not JSON: it is nested too deeply")
    except ValueError as error:
        return _error(400, f"the body is not JSON: {str(error)[:200]}")
    if not _has_at_most(most_values, value):
        return _error(413, f"the body has more than {most_values} values")
    return None


def _has_at_most(most: int, value: object) -> bool:
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict | list):
            most -= len(found)
            if most < 0:
                return False
            waiting.extend(found.values() if isinstance(found, dict) else found)
    return True


def _error(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
    """Return an error in OpenAI's form."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what receives a body that was read before, and then whatever follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def limited_protocol(most: int = MOST_CONNECTIONS) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a limit on connections, and on the time that a client lets us wait for a
    request or for room to write an answer."""

    class LimitedProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._await_request()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._waiting, self._writing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # In pieces, because a chunk of one byte takes as long as one of a megabyte.
            for start in range(0, len(data), _PIECE):
                if self.transport.is_closing():
                    return
                super().data_received(data[start : start + _PIECE])
                if any(name == b"transfer-encoding" for name, _ in self.headers or ()):
                    self._refuse_chunks()
                    return
            if self._is_answering:
                self._stop_waiting()
            else:
                self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self._is_answering:  # the next request may have come with the last one
                self._await_request()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writing = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writing is not None:
                self._writing.cancel()
                self._writing = None

        def _refuse_chunks(self) -> None:
            self.cycle.disconnected = True
            self.transport.write(_NO_CHUNKS)
            self.transport.close()

        @property
        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_request(self) -> None:
            if self._waiting is None:
                self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return LimitedProtocol


def connections_that_fit() -> int:
    """Return how many connections to allow with this process's limit on open files.

    Raises:
        CoeError: The limit leaves no room for any.
    """
    try:
        import resource
    except ImportError:
        return MOST_CONNECTIONS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MOST_CONNECTIONS if allowed == resource.RLIM_INFINITY else allowed - _OTHER_FILES - BACKLOG
    if left < 1:
        raise CoeError(
            f"only {allowed} files may be open at once, and a server needs {_OTHER_FILES + BACKLOG + 1}; raise "
            "the limit (ulimit -n)"
        )
    return min(left, MOST_CONNECTIONS)
