"""Access control of the server: API key, Host and Origin, and checks of request bodies."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import anyio.to_thread
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coe_native.live.openai_requests import Translated, UnsupportedError, wants_usage

BODY_SECONDS = 60.0
_DISCARD_SECONDS = 2.0

PIECE = 4096
"""Bytes that are read from a connection at once."""

_MOST_REQUESTS = 64
_MOST_BYTES_IN_PROGRESS = 32 << 20
"""Maximum bytes of all bodies. Each takes about three times its size, even after its client disconnects."""


@dataclass(frozen=True)
class BodyLimits:
    """Limits of the bodies that are posted to a path.

    Attributes:
        n_bytes: Maximum bytes. The default is about the text for a context of a million tokens.
        n_values: Maximum values in the JSON, such as messages and their parts; None: the application checks.
        n_tokens: Maximum values in the field ``prompt`` beside those, which may be token ids.
        may_be_empty: Whether the body may be empty.
        translate: Changes a checked body; raises UnsupportedError for one that the application cannot serve.
    """

    n_bytes: int = 4 << 20
    n_values: int | None = 1 << 14
    n_tokens: int = 0
    may_be_empty: bool = False
    translate: Callable[[bytes], Translated] | None = None


class Gate:
    """Middleware that passes on requests of permitted senders whose body is small, complete and JSON.

    Other requests are refused before the application sees any part of them.

    Args:
        app: The application.
        api_key: Key that each request must send as ``Authorization: Bearer KEY``; None: no key is needed.
        hosts: Without a key, the only Host headers that are served; None: any. A browser that shows another
            site's page sends that page's Origin, or a Host name that the site has pointed at this machine.
        limits: Limits of the paths that differ from the default.
        open_to_all: Paths that need neither a key nor a Host.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        hosts: frozenset[str] | None,
        limits: Mapping[str, BodyLimits] | None = None,
        open_to_all: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._hosts = hosts
        self._limits = limits or {}
        self._open_to_all = open_to_all
        self._n_requests = 0
        self._n_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if self._is_preflight(scope):
            # A browser asks whether a page may send its key; the application answers without reading anything.
            await self._app(scope, _replayed(b"", receive), send)
            return
        refusal = None if scope["path"] in self._open_to_all else self._refusal(scope)
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
            known = body
            if limits.translate is not None and answer is self._app and scope["method"] == "POST":
                try:
                    known, includes_usage = await anyio.to_thread.run_sync(limits.translate, body)
                    wants_usage.set(includes_usage)
                except UnsupportedError as error:
                    answer = _error(400, str(error))
            await answer(_with_length(scope, len(known)), _replayed(known, receive), send)
        finally:
            self._n_requests -= 1
            self._n_bytes -= len(body)

    async def _check(self, body: bytes, method: str, limits: BodyLimits) -> JSONResponse | None:
        if self._n_bytes > _MOST_BYTES_IN_PROGRESS:
            return _too_many()
        may_be_empty = method != "POST" or limits.may_be_empty
        if limits.n_values is None or (may_be_empty and not body.strip()):
            return None
        return await anyio.to_thread.run_sync(_json_error, body, limits.n_values, limits.n_tokens)

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
                return _error(403, "without an API key, requests from pages of other sites or ports are refused")
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
                if message["type"] != "http.request":  # the client has disconnected
                    return b"", _error(400, "the body is incomplete")
                parts.append(message.get("body", b""))
                if sum(map(len, parts)) > most:
                    return b"", too_large
    except TimeoutError:
        return b"", _error(408, f"the body did not arrive within {BODY_SECONDS:g} seconds")
    return b"".join(parts), None


def _too_many() -> JSONResponse:
    return _error(503, "too many requests are waiting; try again later", "overloaded_error")


async def _discard(scope: Scope, receive: Receive) -> None:
    """Read a refused client's body for a moment; otherwise it would not see the answer."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # the client waits for the answer before it sends the body
    with anyio.move_on_after(_DISCARD_SECONDS):
        while (await receive()).get("more_body"):
            pass


def _json_error(body: bytes, most_values: int, most_tokens: int) -> JSONResponse | None:
    """Return the answer to a body that cannot be used, or None.

    Refused are text that is not JSON or not Unicode, numbers of more than 64 bits, and too many values:
    checking the type of each value takes long, and much memory for wrong ones.
    """

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
        if b"\\u" in body:  # it may be half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        return _error(400, "the body is not JSON: it is nested too deeply")
    except ValueError as error:
        return _error(400, f"the body is not JSON: {str(error)[:200]}")
    if most_tokens and isinstance(value, dict) and not _has_at_most(most_tokens, value.pop("prompt", None)):
        return _error(413, f"the prompt has more than {most_tokens} values")
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


def _with_length(scope: Scope, length: int) -> Scope:
    """Return a scope whose headers give the length of a translated body."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    had_length = len(headers) < len(scope["headers"])
    return {**scope, "headers": [*headers, (b"content-length", b"%d" % length)] if had_length else headers}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read before, and then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
