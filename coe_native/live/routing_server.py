"""`coe-native serve`: llama-cpp-python's OpenAI-compatible server, with its routing counted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from coe_native._native import core
from coe_native.errors import CoeError, InputError, without_directories
from coe_native.live.address import Address
from coe_native.live.attach import Capture, attach
from coe_native.live.connections import BACKLOG, connections_that_fit, limited_protocol
from coe_native.live.gate import BodyLimits, Gate
from coe_native.live.llama_cpp_python.app import llama_app
from coe_native.live.llama_cpp_python.between_answers import between_answers
from coe_native.live.llama_cpp_python.requests import COMPLETIONS
from coe_native.live.openai_requests import translated
from coe_native.live.routing_state import LiveRouting
from coe_native.llama.options import ModelOptions
from coe_native.masks.expert_mask import MOST_BYTES, ExpertMask
from coe_native.masks.stability import Stability
from coe_native.routing.stats import Stats

HEALTH = "/health"
"""The path that tells whether the server is ready, as llama-server has it."""

_MOST_TOKENS = 1 << 17
"""Maximum token ids in a request."""

_PATIENCE = 3
"""Seconds that answers have to finish when the server ends."""

_MOST_LISTS = 1 << 17
"""Maximum lists in a mask: one for each layer, swap and structural expert."""

_MOST_ERRORS = 20
"""Maximum errors of the server itself that are printed."""


def add_routes(app: FastAPI, routing: LiveRouting) -> None:
    """Add ``/routing`` to an application.

    Args:
        app: The application.
        routing: The counts that the routes show, save and mask.
    """
    router = APIRouter(prefix="/routing", tags=["Routing"])

    @router.get("", summary="Counts so far")
    def status() -> dict[str, Any]:
        with _as_response(routing):
            return routing.status()

    @router.post("/save", summary="Save the profiles")
    def save() -> dict[str, Any]:
        with _as_response(routing):
            return {"saved": [path.name for path in routing.save()]}

    @router.post("/mask", summary="Apply the mask in the body, or remove it with an empty body")
    async def mask(request: Request) -> dict[str, Any]:
        data = await request.body()
        with _as_response(routing):
            wanted = await run_in_threadpool(_mask_of, data)
            # It waits for its turn like a request, because masks must not change in the middle of an answer.
            async with between_answers():
                await run_in_threadpool(_change_mask, routing.capture, wanted)
        return {"mask": None if wanted is None else {"digest": wanted.digest, "keep": wanted.keep}}

    app.include_router(router)

    @app.get(HEALTH, summary="Tell that the server is ready")
    async def health() -> dict[str, str]:
        return {"status": "ok"}


def _mask_of(body: bytes) -> ExpertMask | None:
    if body.strip() in (b"", b"null"):
        return None
    if body.count(b"[") + body.count(b"{") > _MOST_LISTS:
        raise InputError("the body: is not a mask; make one with `coe-native mask`")
    return ExpertMask.parse(body, "the body")


def _change_mask(capture: Capture, mask: ExpertMask | None) -> None:
    if mask is None:
        capture.clear_mask()
    else:
        capture.apply(mask)


@contextlib.contextmanager
def _as_response(routing: LiveRouting) -> Iterator[None]:
    try:
        yield
    except CoeError as error:
        status = 422 if isinstance(error, InputError) else 500
        raise HTTPException(status, without_directories(str(error), *routing.files)) from error


class _Server(uvicorn.Server):
    """uvicorn's server, which prints each of its own errors once: some would fill the log."""

    async def startup(self, sockets: Any = None) -> None:
        said: set[str] = set()

        def say_once(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            text = f"{context.get('message')}: {context.get('exception')!r}"
            if text not in said and len(said) < _MOST_ERRORS:
                said.add(text)
                print(f"the server continues after an error: {text}", file=sys.stderr)

        asyncio.get_running_loop().set_exception_handler(say_once)
        await super().startup(sockets)


def _server(app: FastAPI, protocol: type[asyncio.Protocol], address: Address, port: int | None) -> _Server:
    """Return uvicorn's server for an application behind the gate."""
    gate = Gate(
        app,
        api_key=address.api_key,
        hosts=None if port is None else address.own_hosts(port),
        limits={
            COMPLETIONS: BodyLimits(n_tokens=_MOST_TOKENS, translate=translated),
            "/v1/chat/completions": BodyLimits(translate=translated),
            "/detokenize": BodyLimits(n_values=_MOST_TOKENS),
            "/extras/detokenize": BodyLimits(n_values=_MOST_TOKENS),
            "/routing/mask": BodyLimits(MOST_BYTES, n_values=None, may_be_empty=True),
            "/routing/save": BodyLimits(may_be_empty=True),
        },
        open_to_all=frozenset((HEALTH,)),
    )
    return _Server(
        uvicorn.Config(
            gate,
            loop="asyncio",
            http=protocol,
            ws="none",
            backlog=BACKLOG,
            log_level="critical",
            timeout_graceful_shutdown=_PATIENCE,
            log_config=None,
        )
    )


def serve(
    model: Path,
    output: Path,
    *,
    address: Address,
    options: ModelOptions,
    stability: Stability,
    stats: str = Stats.ROUTING.value,
    mask: ExpertMask | None = None,
    logits_all: bool = False,
    save_every: float = 300.0,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Serve a model until the process is told to end (SIGINT, SIGTERM, SIGHUP).

    Args:
        model: The model's GGUF file.
        output: The profile file to write; see `LiveRouting.paths`.
        address: Where to listen, and the API key.
        options: How to load the model.
        stability: Checks whether the mask is stable.
        stats: What to count: one of STATS.
        mask: The live mask to start with.
        logits_all: Compute logits of every prompt token.
        save_every: Seconds between two saves. Profiles are also saved at the end, and when llama.cpp crashes.
        resume: Continue the counts of an earlier run's files.
        say: Called with lines for the user: where the server listens, and what goes wrong.

    Returns:
        The paths of the profiles that were saved at the end.

    Raises:
        InputError: The model, the mask, the address or a file of an earlier run cannot be used.
        CoeError: llama.cpp fails, or the address is in use.
    """
    protocol = limited_protocol(connections_that_fit())
    with (
        address.listen() as (listener, place),
        llama_app(model, options, logits_all=logits_all) as (app, llama),
    ):
        capture = attach(llama, stats=stats)
        llama.model_path = capture.moe.path.stem  # the model's name in answers
        routing = LiveRouting(capture, output, stability, resume=resume, say=say)
        if mask is not None:
            capture.apply(mask)
        add_routes(app, routing)
        port = None if address.uds is not None else listener.getsockname()[1]
        server = _server(app, protocol, address, port)
        say(_greeting(model, place, is_socket=address.uds is not None))
        try:
            with (
                _tended(routing, save_every, say),
                _saved_at_a_crash(routing, say),
                _ended_by_hangup(server),
                contextlib.redirect_stdout(sys.stderr),  # llama-cpp-python prints disconnects
                contextlib.suppress(KeyboardInterrupt, SystemExit),
            ):
                server.run(sockets=[listener])
        finally:
            capture.interrupt()  # answers whose clients have disconnected
            saved = routing.save_at_the_end()
        if not server.started:
            raise CoeError(f"{place}: the server could not start")
        return saved


def _greeting(model: Path, place: str, *, is_socket: bool) -> str:
    if is_socket:
        return (
            f"{model}: listening on the Unix socket {place}, with OpenAI's API at /v1 and the counts at /routing"
        )
    return f"{model}: {place}/v1 for clients of OpenAI's API, {place}/routing for the counts"


@contextlib.contextmanager
def _ended_by_hangup(server: uvicorn.Server) -> Iterator[None]:
    """Stop the server properly if its terminal is closed while the block runs.

    uvicorn does so for SIGINT and SIGTERM.
    """
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        server.should_exit = True

    before = signal.signal(signal.SIGHUP, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def _saved_at_a_crash(routing: LiveRouting, say: Callable[[str], None]) -> Iterator[None]:
    """Save the counts if llama.cpp crashes while the block runs.

    A thread waits for the crash of another one, which waits until the counts are saved.
    """
    crashed, crash = os.pipe()

    def wait() -> None:
        if os.read(crashed, 1) == b"x":
            with contextlib.suppress(Exception):  # the process may be damaged
                paths = routing.save_at_the_end()
                say(
                    f"saved before the process ended: {', '.join(map(str, paths))}"
                    if paths
                    else "there was nothing to save"
                )
            os._exit(1)

    thread = threading.Thread(target=wait, name="coe-native crash", daemon=True)
    thread.start()
    core.set_crash_listener(crash)
    core.set_crash_advice("; a request caused this, not the model's file: please report it")
    try:
        yield
    finally:
        core.set_crash_listener(-1)
        core.set_crash_advice("")
        os.close(crash)
        thread.join()
        os.close(crashed)


@contextlib.contextmanager
def _tended(routing: LiveRouting, save_every: float, say: Callable[[str], None]) -> Iterator[None]:
    """Save regularly, and check whether the mask is stable, in a thread while the block runs."""
    ended = threading.Event()

    def tend() -> None:
        last, said = time.monotonic(), ""
        while not ended.wait(min(1.0, save_every)):
            try:
                routing.look()
                if routing.has_news and time.monotonic() - last >= save_every:
                    last = time.monotonic()
                    routing.save()
            except (CoeError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    say(said)
                routing.capture.recover()

    thread = threading.Thread(target=tend, name="coe-native profiles", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
