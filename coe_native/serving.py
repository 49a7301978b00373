"""llama-cpp-python's OpenAI-compatible server, with routing capture on: what it reads and writes is counted."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import llama_cpp.llama_cpp as llama_api
import llama_cpp.server.app as llama_server
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from llama_cpp.server.errors import RouteErrorHandler
from llama_cpp.server.settings import ModelSettings, ServerSettings
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coe_native._native import core
from coe_native.cores import available_cores
from coe_native.errors import CoeError, InputError, printable
from coe_native.fitting import Placement
from coe_native.live import Capture, attach
from coe_native.masking import MOST_BYTES, ExpertMask
from coe_native.memory import check_context
from coe_native.moe_model import MoeModel
from coe_native.routing_profile import RoutingProfile, merge
from coe_native.stability import Stability

_ERROR = 4
"""ggml.h's GGML_LOG_LEVEL_ERROR; llama-cpp-python goes by older numbers, shows warnings and hides errors."""

_errors: list[str] = []


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _show_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


_PATIENCE = 3
"""Seconds that answers have to come to their end when the server does."""


class _ArgumentsAlone:
    """The server's settings read variables like SEED and LORA_PATH from the environment; these do not."""

    @classmethod
    def settings_customise_sources(cls, _: type, init_settings: Any, **__: Any) -> tuple[Any, ...]:
        return (init_settings,)


class _ModelSettings(_ArgumentsAlone, ModelSettings):  # type: ignore[misc]
    pass


class _ServerSettings(_ArgumentsAlone, ServerSettings):  # type: ignore[misc]
    pass


@dataclass(frozen=True)
class Address:
    """Where to listen, and the key that is asked for, if any. Raises InputError for an address that others can
    reach without a key."""

    host: str
    port: int
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise InputError("an API key must have at least one character")
        if self.api_key is None and not self._is_local:
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
            raise InputError(f"{self.host}: is no address of this machine: {error}") from error
        return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]

    def listen(self) -> socket.socket:
        """Raises CoeError where the address is taken, or not this machine's."""
        family, address = self._found[0]
        try:
            return socket.create_server(address, family=family)
        except OSError as error:
            raise CoeError(f"{self.host}:{self.port}: cannot be listened on: {error.strerror or error}") from error


class LiveRouting:
    """What a server has counted, with what earlier runs had, and where that is saved: all tokens in `output`, and
    those of prompts and of what was generated in files beside it. For use by several threads."""

    def __init__(self, capture: Capture, output: Path, stability: Stability, *, resume: bool) -> None:
        self.capture = capture
        self.stability = stability
        self._before = self._saved(output) if resume else None
        self._output = output
        self._lock = threading.RLock()
        self._saved_tokens = 0

    @staticmethod
    def paths(output: Path) -> tuple[Path, Path, Path]:
        """Of all tokens, of prompts, of what was generated."""
        prompts, generated = (
            output.with_name(f"{output.stem}.{part}{output.suffix}") for part in ("prompts", "generated")
        )
        return output, prompts, generated

    def _saved(self, output: Path) -> tuple[RoutingProfile, RoutingProfile] | None:
        """What an earlier run has left. Raises InputError for files that are not of one run with this model."""
        paths = self.paths(output)
        missing = [path for path in paths if not path.exists()]
        if len(missing) == len(paths):
            return None
        if missing:
            raise InputError(f"{output}: cannot be gone on with (--resume): {missing[0]} is not there")
        whole, prompts, generated = map(RoutingProfile.load, paths)
        for profile in (whole, prompts, generated):
            if profile.fingerprint != self.capture.moe.fingerprint:
                raise InputError(f"{profile.place}: is of another model than {self.capture.moe.path}")
        if (whole.histograms != prompts.histograms + generated.histograms).any():
            raise InputError(
                f"{output}: is not the sum of {prompts.place} and {generated.place}: choose another name"
            )
        return prompts, generated

    def profiles(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Of prompts, and of what was generated."""
        now = self.capture.parts
        if self._before is None:
            return now
        prompts, generated = map(_continued, self._before, now)
        return prompts, generated

    def status(self) -> dict[str, Any]:
        """The counts so far, for `GET /routing`."""
        with self._lock:
            prompts, generated = self.look()
            curve = [asdict(agreement) for agreement in self.stability.curve]
            stable = self.stability.stable
        parts = {"prompts": prompts, "generated": generated}
        mask = self.capture.mask
        return {
            "model": prompts.model_name,
            "architecture": prompts.architecture,
            "fingerprint": prompts.fingerprint,
            "experts": prompts.n_experts,
            "top_k": prompts.top_k,
            "tokens": {name: profile.n_tokens for name, profile in parts.items()},
            "layers": {
                str(block): {
                    name: {"tokens": profile.layer_tokens[i], "counts": profile.counts[i].tolist()}
                    for name, profile in parts.items()
                }
                for i, block in enumerate(prompts.layers)
            },
            "stability": {"threshold": self.stability.threshold, "stable": stable, "agreement": curve},
            "mask": None
            if mask is None
            else {"digest": mask.digest, "keep": mask.keep, "tokens": self.capture.masked.n_tokens},
        }

    def save(self) -> list[Path]:
        """Writes what there is to write, each file whole or not at all; returns their paths."""
        with self._lock:
            prompts, generated = self.profiles()
            total = merge([prompts, generated])
            if total.n_tokens == 0:
                return []
            paths = self.paths(self._output)
            # The sum last: where that is new, the parts are.
            for path, profile in reversed(list(zip(paths, (total, prompts, generated), strict=True))):
                profile.save(path)
            self._saved_tokens = total.n_tokens
        return list(paths)

    @property
    def has_news(self) -> bool:
        """Whether there is something that has not been saved."""
        prompts, generated = self.profiles()
        return prompts.n_tokens + generated.n_tokens > self._saved_tokens

    def look(self) -> tuple[RoutingProfile, RoutingProfile]:
        """The profiles; and where it is time for that, whether their mask is stable."""
        with self._lock:
            prompts, generated = self.profiles()
            if self.stability.due(prompts.n_tokens + generated.n_tokens):
                # A layer that nobody has asked the outputs of has no mask yet.
                with contextlib.suppress(InputError):
                    self.stability.look(merge([prompts, generated]))
        return prompts, generated


def _continued(before: RoutingProfile, now: RoutingProfile) -> RoutingProfile:
    """Both, as one corpus."""
    total = before + now
    return replace(total, corpora=tuple(replace(record, tokens=total.n_tokens) for record in total.corpora[:1]))


@contextlib.contextmanager
def _loaded(
    model: Path, placement: Placement, *, n_threads: int | None, logits_all: bool, address: Address
) -> Iterator[FastAPI]:
    """llama-cpp-python's server for one model, which is there while the block runs. Raises CoeError where
    llama.cpp cannot load it."""
    moe = MoeModel(model)
    if moe.is_causal and not (placement.n_gpu_layers and core.free_gpu_memory()):
        check_context(moe, placement.n_ctx, placement.n_batch, bytes_of_value=2)
    settings = _ModelSettings(
        model=str(model),
        model_alias=moe.path.stem,
        n_gpu_layers=placement.n_gpu_layers,
        n_ctx=placement.n_ctx,
        n_batch=placement.n_batch,
        n_ubatch=placement.n_batch,
        n_threads=n_threads or available_cores(),
        n_threads_batch=n_threads or available_cores(),
        logits_all=logits_all,
        use_mlock=False,
        cache=False,  # its states would outlive a change of masks
        verbose=False,
    )
    server_settings = _ServerSettings(
        host=address.host,
        port=address.port,
        api_key=address.api_key,
        interrupt_requests=False,  # a second request waits; it does not cut the first one's answer short
    )
    _errors.clear()
    llama_api.llama_log_set(_keep_errors, None)
    try:
        with placed(placement), _without("CONFIG_FILE"):
            app: FastAPI = llama_server.create_app(server_settings=server_settings, model_settings=[settings])
    except (ValueError, RuntimeError) as error:
        reason = printable(_errors[0] if _errors else str(error))
        raise CoeError(f"{model}: llama.cpp cannot load it: {reason}") from error
    llama_api.llama_log_set(_show_errors, None)
    RouteErrorHandler.error_message_wrapper = _explain_quietly
    try:
        yield app
    finally:
        RouteErrorHandler.error_message_wrapper = _explain
        # Before the interpreter takes what llama.cpp would call.
        llama_server._llama_proxy.free()


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Models that llama-cpp-python loads in the block go where `placement` says; it has no options for devices
    and for experts in host memory."""
    where = core.WeightPlacement(devices=list(placement.devices), n_cpu_moe=placement.n_cpu_moe)
    defaults = llama_api.llama_model_default_params

    def placed() -> Any:
        params = defaults()
        params.devices = where.devices or None
        params.tensor_buft_overrides = where.overrides or None
        params.use_extra_bufts = where.repack
        return params

    llama_api.llama_model_default_params = placed
    try:
        yield
    finally:
        llama_api.llama_model_default_params = defaults


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Without an environment variable, by which the server would read somebody else's settings."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


class _LocalOnly:
    """Refuses requests that a browser makes for a page from elsewhere, directly or by a name that its owner lets
    lead here: without a key, whatever reaches this machine's address may use the server, and any page does."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            asked = [f"//{headers.get('host', '')}", *([] if origin is None else [origin])]
            if not all(_host_of(place) in self._names for place in asked):
                refusal = JSONResponse({"detail": "without an API key, only this machine's pages may ask"}, 403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host_of(place: str) -> str | None:
    try:
        return urlsplit(place).hostname
    except ValueError:
        return None


_explain = RouteErrorHandler.error_message_wrapper


def _explain_quietly(self: RouteErrorHandler, error: Exception, body: Any = None) -> tuple[int, Any]:
    """What llama-cpp-python answers where a request fails; but its log would have the request's text in it."""
    if isinstance(error, RequestValidationError):
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return 422, {"message": wrong, "type": "invalid_request_error", "param": None, "code": None}
    with contextlib.redirect_stderr(io.StringIO()):
        answer: tuple[int, Any] = _explain(self, error, body)
    print(f"a request failed: {type(error).__name__}", file=sys.stderr)
    return answer


def add_routes(app: FastAPI, routing: LiveRouting) -> None:
    """``/routing``, for who may use the rest of the server."""
    router = APIRouter(prefix="/routing", dependencies=[Depends(llama_server.authenticate)], tags=["Routing"])

    @router.get("", summary="Counts so far")
    def status() -> dict[str, Any]:
        with _as_response():
            return routing.status()

    @router.post("/save", summary="Save the profiles")
    def save() -> dict[str, Any]:
        with _as_response():
            return {"saved": [str(path) for path in routing.save()]}

    @router.post("/mask", summary="Apply the mask in the body, or take it away with an empty body")
    async def mask(request: Request) -> dict[str, Any]:
        data = await _body(request)
        with _as_response():
            wanted = ExpertMask.parse(data, "the body") if data.strip() not in (b"", b"null") else None
            # Not in the middle of an answer: it takes its turn with the requests.
            async with contextlib.asynccontextmanager(llama_server.get_llama_proxy)():
                await run_in_threadpool(_change_mask, routing.capture, wanted)
        return {"mask": None if wanted is None else {"digest": wanted.digest, "keep": wanted.keep}}

    app.include_router(router)


def _change_mask(capture: Capture, mask: ExpertMask | None) -> None:
    if mask is None:
        capture.clear_mask()
    else:
        capture.apply(mask)


async def _body(request: Request) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise HTTPException(413, "the body is of no mask's size")
    return data


@contextlib.contextmanager
def _as_response() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except CoeError as error:
        raise HTTPException(500, str(error)) from error


def serve(
    model: Path,
    output: Path,
    *,
    address: Address,
    placement: Placement,
    stability: Stability,
    mask: ExpertMask | None = None,
    n_threads: int | None = None,
    logits_all: bool = False,
    save_every: float = 300.0,
    resume: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Serves `model` until the process is told to end (SIGINT, SIGTERM); returns the paths of the profiles that it
    has then saved, as it does every `save_every` seconds. `mask`: the live mask to begin with. `resume`: go on
    counting from the files of an earlier run. `say` is told where it listens, and what goes wrong.

    Raises InputError for bad input, CoeError where llama.cpp fails or the address is taken.
    """
    with (
        contextlib.closing(address.listen()) as listener,
        _loaded(model, placement, n_threads=n_threads, logits_all=logits_all, address=address) as app,
    ):
        capture = attach(llama_server._llama_proxy())
        routing = LiveRouting(capture, output, stability, resume=resume)
        if mask is not None:
            capture.apply(mask)
        add_routes(app, routing)
        if address.api_key is None:
            app.add_middleware(_LocalOnly, host=address.host)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_PATIENCE, log_config=None)
        )
        host, port = listener.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"{model}: {place}/v1 for clients of OpenAI's API, {place}/routing for the counts")
        with (
            _tended(routing, save_every, say),
            contextlib.redirect_stdout(sys.stderr),  # where llama-cpp-python says that a client has gone
            contextlib.suppress(KeyboardInterrupt, SystemExit),
        ):
            server.run(sockets=[listener])
        capture.interrupt()  # answers that nobody waits for any more
        if not server.started:
            raise CoeError(f"{place}: the server could not begin")
        return routing.save()


@contextlib.contextmanager
def _tended(routing: LiveRouting, save_every: float, say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a thread saves now and then, and looks whether the mask is stable."""
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
