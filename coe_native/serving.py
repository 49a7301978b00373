"""llama-cpp-python's OpenAI-compatible server, with routing capture on: what it reads and writes is counted."""

from __future__ import annotations

import contextlib
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

import llama_cpp.llama_cpp as llama_api
import llama_cpp.server.app as llama_server
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from llama_cpp.server.settings import ModelSettings, ServerSettings
from starlette.concurrency import run_in_threadpool

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
        self._lock = threading.Lock()
        self._saved_tokens = 0

    @staticmethod
    def paths(output: Path) -> tuple[Path, Path, Path]:
        """Of all tokens, of prompts, of what was generated."""
        prompts, generated = (
            output.with_name(f"{output.stem}.{part}{output.suffix}") for part in ("prompts", "generated")
        )
        return output, prompts, generated

    def _saved(self, output: Path) -> tuple[RoutingProfile | None, RoutingProfile | None]:
        """What an earlier run has left. Raises InputError for that of another model."""
        _, *paths = self.paths(output)
        prompts, generated = (RoutingProfile.load(path) if path.exists() else None for path in paths)
        for profile in (prompts, generated):
            if profile is not None and profile.fingerprint != self.capture.moe.fingerprint:
                raise InputError(f"{profile.place}: is of another model than {self.capture.moe.path}")
        return prompts, generated

    def profiles(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Of prompts, and of what was generated."""
        prompts, generated = self.capture.parts
        if self._before is None:
            return prompts, generated
        before_prompts, before_generated = self._before
        return _continued(before_prompts, prompts), _continued(before_generated, generated)

    def status(self) -> dict[str, Any]:
        """The counts so far, for `GET /routing`."""
        prompts, generated = self.profiles()
        self._look(prompts, generated)
        parts = {"prompts": prompts, "generated": generated}
        mask = self.capture.mask
        with self._lock:
            curve = [asdict(agreement) for agreement in self.stability.curve]
            stable = self.stability.stable
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
            "mask": None if mask is None else {"digest": mask.digest, "keep": mask.keep},
        }

    def save(self) -> list[Path]:
        """Writes what there is to write, each file whole or not at all; returns their paths."""
        prompts, generated = self.profiles()
        saved = []
        with self._lock:
            for path, profile in zip(
                self.paths(self._output), (merge([prompts, generated]), prompts, generated), strict=True
            ):
                if profile.n_tokens:
                    profile.save(path)
                    saved.append(path)
            self._saved_tokens = prompts.n_tokens + generated.n_tokens
        return saved

    def tend(self) -> bool:
        """To be called now and then: whether there is something that has not been saved."""
        prompts, generated = self.profiles()
        self._look(prompts, generated)
        return prompts.n_tokens + generated.n_tokens > self._saved_tokens

    def _look(self, prompts: RoutingProfile, generated: RoutingProfile) -> None:
        with self._lock:
            if self.stability.due(prompts.n_tokens + generated.n_tokens):
                # A layer that nobody has asked the outputs of has no mask yet.
                with contextlib.suppress(InputError):
                    self.stability.look(merge([prompts, generated]))


def _continued(before: RoutingProfile | None, now: RoutingProfile) -> RoutingProfile:
    """Both, as one corpus."""
    if before is None:
        return now
    total = before + now
    return replace(total, corpora=tuple(replace(record, tokens=total.n_tokens) for record in total.corpora[:1]))


def make_app(
    model: Path, placement: Placement, *, n_threads: int | None, logits_all: bool, address: Address
) -> FastAPI:
    """llama-cpp-python's server for one model. Raises CoeError where llama.cpp cannot load it."""
    moe = MoeModel(model)
    if moe.is_causal and not (placement.n_gpu_layers and core.free_gpu_memory()):
        check_context(moe, placement.n_ctx, placement.n_batch, bytes_of_value=2)
    settings = ModelSettings(
        model=str(model),
        model_alias=moe.path.stem,
        n_gpu_layers=placement.n_gpu_layers,
        n_ctx=placement.n_ctx,
        n_batch=placement.n_batch,
        n_ubatch=placement.n_batch,
        n_threads=n_threads or available_cores(),
        n_threads_batch=n_threads or available_cores(),
        logits_all=logits_all,
        cache=False,  # its states would outlive a change of masks
        verbose=False,
    )
    server_settings = ServerSettings(
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
    return app


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
    listener = address.listen()
    with contextlib.closing(listener):
        app = make_app(model, placement, n_threads=n_threads, logits_all=logits_all, address=address)
        capture = attach(llama_server._llama_proxy())
        routing = LiveRouting(capture, output, stability, resume=resume)
        if mask is not None:
            capture.apply(mask)
        add_routes(app, routing)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE, log_config=None)
        )
        host, port = listener.getsockname()[:2]
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        say(f"{model}: {place}/v1 for clients of OpenAI's API, {place}/routing for the counts")
        with _tended(routing, save_every, say), contextlib.suppress(KeyboardInterrupt, SystemExit):
            server.run(sockets=[listener])
        if not server.started:
            raise CoeError(f"{place}: the server could not begin")
        return routing.save()


@contextlib.contextmanager
def _tended(routing: LiveRouting, save_every: float, say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, a thread saves now and then, and looks whether the mask is stable."""
    ended = threading.Event()

    def tend() -> None:
        last = time.monotonic()
        while not ended.wait(min(1.0, save_every)):
            try:
                if routing.tend() and time.monotonic() - last >= save_every:
                    last = time.monotonic()
                    routing.save()
            except CoeError as error:
                say(str(error))

    thread = threading.Thread(target=tend, name="coe-native profiles", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
