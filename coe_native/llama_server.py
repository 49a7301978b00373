"""llama-cpp-python's server for one model, with what must be changed in it.

Whatever a client sends is checked before llama.cpp sees it, because llama.cpp may end the process on bad input.
Chat templates and grammars run in helper processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import llama_cpp
import llama_cpp._internals as llama_internals
import llama_cpp.llama_chat_format as llama_chat
import llama_cpp.llama_cpp as llama_api
import llama_cpp.server.app as llama_server
import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from llama_cpp import llama_grammar
from llama_cpp.server.errors import RouteErrorHandler
from llama_cpp.server.settings import ModelSettings, ServerSettings
from llama_cpp.server.types import DetokenizeInputRequest, TokenizeInputRequest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse

from coe_native._native import core
from coe_native.chat import ChatTemplate
from coe_native.cores import available_cores
from coe_native.deep_stack import with_stack_for
from coe_native.errors import CoeError, InputError, printable, without_directories
from coe_native.fitting import Placement
from coe_native.grammar import CANDIDATE, GrammarHelper
from coe_native.helper_process import HelperError
from coe_native.memory import check_context
from coe_native.moe_model import MoeModel

_ERROR = 4
"""ggml.h's GGML_LOG_LEVEL_ERROR; llama-cpp-python goes by older numbers, shows warnings and hides errors."""

_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
"""Pages that load scripts from other sites."""

_TOKEN_PATHS = ("/extras/tokenize", "/extras/tokenize/count", "/extras/detokenize")

_MOST_TOKENS = 1 << 16
"""That are made text at once, where the context is smaller: the time for it grows with the square."""

_MOST_BIASED = 4096
_MOST_LOGPROBS = 100

_MOST_WRONG = 5
"""Fields of a request that an error names."""

_LONGEST_RUN = 1 << 18
"""Characters, twice: some 120 MB of stack."""

_MOST_UINT32 = 2**32 - 1

_errors: list[str] = []

_CONTEXT_IS_FULL = "llama_decode returned 1"
"""llama-cpp-python does not check max_tokens while the last bytes of an answer are not UTF-8."""

_failures_said: set[type[Exception]] = set()
"""Unexpected errors that were printed. Clients could fill the log with them."""


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _show_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class _ArgumentsAlone:
    """The server's settings read variables like SEED and LORA_PATH from the environment; these do not."""

    @classmethod
    def settings_customise_sources(cls, _: type, init_settings: Any, **__: Any) -> tuple[Any, ...]:
        return (init_settings,)


class _ModelSettings(_ArgumentsAlone, ModelSettings):  # type: ignore[misc]
    pass


class _ServerSettings(_ArgumentsAlone, ServerSettings):  # type: ignore[misc]
    pass


@contextlib.contextmanager
def llama_app(
    model: Path, placement: Placement, *, n_threads: int | None, logits_all: bool
) -> Iterator[tuple[FastAPI, llama_cpp.Llama]]:
    """Load a model, and yield llama-cpp-python's application with the Llama that it uses.

    Raises:
        CoeError: llama.cpp cannot load the model.
    """
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
    # Keys are asked for before a request reaches the application.
    server_settings = _ServerSettings(interrupt_requests=False)  # a second request waits for the first answer
    _errors.clear()
    llama_api.llama_log_set(_keep_errors, None)
    tokenize = llama_internals.LlamaModel.tokenize
    tokenizing = threading.Lock()

    def tokenize_safely(self: Any, text: bytes, *args: Any, **options: Any) -> Any:
        core.prepare_thread_for_crashes()
        with tokenizing:
            return with_stack_for(text, lambda: tokenize(self, text, *args, **options), most=_LONGEST_RUN)

    kept = [route for route in llama_server.router.routes if route.path not in _TOKEN_PATHS]
    with (
        _replaced(llama_server.router, "routes", kept),
        _replaced(llama_internals.LlamaModel, "tokenize", tokenize_safely),
        _replaced_chat_templates(),
        _replaced_grammars(model),
    ):
        try:
            with placed(placement), _without("CONFIG_FILE"):
                app: FastAPI = llama_server.create_app(server_settings=server_settings, model_settings=[settings])
        except (ValueError, RuntimeError) as error:
            reason = printable(_errors[0] if _errors else str(error))
            raise CoeError(f"{model}: llama.cpp cannot load it: {reason}") from error
        llama_api.llama_log_set(_show_errors, None)
        llama = llama_server._llama_proxy()
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in _PAGES]
        app.include_router(_token_routes())
        app.add_exception_handler(StarletteHTTPException, _answer_to_http_error)
        app.add_exception_handler(InputError, _answer_to_bad_input)
        app.add_exception_handler(RequestValidationError, _answer_to_bad_fields)
        try:
            with _checked_requests(model):
                yield app, llama
        finally:
            # Before the interpreter takes what llama.cpp would call, and not while another thread is in it.
            with tokenizing:
                llama_server._llama_proxy.free()


@contextlib.asynccontextmanager
async def between_answers() -> AsyncIterator[None]:
    """Wait for the model, and keep requests from it while the block runs."""
    async with contextlib.asynccontextmanager(llama_server.get_llama_proxy)():
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[Any]:
    """Replace an attribute while the block runs. Yields what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield before
    finally:
        setattr(owner, name, before)


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

    with _replaced(llama_api, "llama_model_default_params", placed):
        yield


@contextlib.contextmanager
def _without(variable: str) -> Iterator[None]:
    """Without an environment variable, by which the server would read somebody else's settings."""
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


class _IsolatedFormatter:
    """llama-cpp-python's Jinja2ChatFormatter, but the template runs in a helper process."""

    started: list[ChatTemplate]

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:
        self._template = ChatTemplate(template, bos_token, eos_token)
        self.started.append(self._template)
        self._eos = eos_token
        self._reply = add_generation_prompt
        self._stop_ids = set(stop_token_ids or ())

    def __call__(self, **variables: Any) -> Any:
        try:
            prompt = self._template.render_once({"add_generation_prompt": self._reply, **variables})
        except HelperError as error:
            raise InputError(f"the model's chat template failed: {error}") from error
        except InputError as error:
            raise InputError(f"the model's chat template refused the messages: {error}") from error
        ends = [lambda tokens, _: tokens[-1] in self._stop_ids]
        return llama_chat.ChatFormatterResponse(
            prompt=prompt,
            stop=[self._eos],
            stopping_criteria=llama_cpp.StoppingCriteriaList(ends) if self._stop_ids else None,
            added_special=True,
        )

    def to_chat_handler(self) -> Any:
        return llama_chat.chat_formatter_to_chat_completion_handler(self)


@contextlib.contextmanager
def _replaced_chat_templates() -> Iterator[None]:
    """Chat templates of models that are loaded in the block run in helper processes."""
    started: list[ChatTemplate] = []
    isolated = type("IsolatedFormatter", (_IsolatedFormatter,), {"started": started})
    try:
        with _replaced(llama_chat, "Jinja2ChatFormatter", isolated):
            yield
    finally:
        for template in started:
            template.close()


@contextlib.contextmanager
def _replaced_grammars(model: Path) -> Iterator[None]:
    """While the block runs, a helper process follows the grammars of all answers."""
    sample = llama_internals.LlamaSampler.sample

    def checked_sample(self: Any, *args: Any, **options: Any) -> Any:
        token = sample(self, *args, **options)
        followed: _FollowedGrammar | None = getattr(self, "coe_native_grammar", None)
        if followed is not None and followed.error is not None:
            raise followed.error
        return token

    with contextlib.closing(GrammarHelper(model)) as helper:

        def add_grammar(self: Any, _: Any, grammar: Any) -> None:
            if grammar._grammar.strip():
                self.coe_native_grammar = _FollowedGrammar(helper, grammar._grammar, grammar._root)
                sampler = self.coe_native_grammar.sampler
                llama_api.llama_sampler_chain_add(self.sampler, sampler.get_sampler())
                position = llama_api.llama_sampler_chain_n(self.sampler) - 1
                self.custom_samplers.append((position, sampler))

        with (
            _replaced(llama_grammar, "json_schema_to_gbnf", lambda schema, *_: helper.from_schema(schema)),
            _replaced(llama_internals.LlamaSampler, "add_grammar", add_grammar),
            _replaced(llama_internals.LlamaSampler, "sample", checked_sample),
        ):
            yield


class _FollowedGrammar:
    """The grammar of one answer, as a sampler that llama.cpp calls. It must not raise; `error` says what went
    wrong."""

    def __init__(self, helper: GrammarHelper, grammar: str, root: str) -> None:
        self._helper = helper
        self._allowed = helper.begin(grammar, root)
        self.error: InputError | None = None
        self.sampler = llama_internals.CustomSampler(self._apply)
        # llama.cpp calls it as long as the sampler lives.
        self._accept_callback = llama_api.llama_sampler_i_accept(self._accept)
        self.sampler.sampler.iface.contents.accept = self._accept_callback

    def _apply(self, array: Any) -> None:
        found = array.contents
        address = ctypes.cast(found.data, ctypes.c_void_p).value
        data = (ctypes.c_char * (found.size * CANDIDATE.itemsize)).from_address(address)
        candidates = np.frombuffer(data, CANDIDATE)
        candidates["logit"][~self._allowed[candidates["id"]]] = -np.inf

    def _accept(self, _: Any, token: int) -> None:
        if self.error is None:
            try:
                self._allowed = self._helper.accept(token)
            except InputError as error:
                self.error = error


def _token_routes() -> APIRouter:
    """Return routes in place of llama-cpp-python's, which block the whole server, and crash on unknown tokens."""
    router = APIRouter(tags=["Extras"])

    async def tokens_of(given: str) -> list[int]:
        async with between_answers():
            llama = llama_server._llama_proxy()
            tokens: list[int] = await run_in_threadpool(llama.tokenize, given.encode(), special=True)
            return tokens

    @router.post("/extras/tokenize", summary="Tokenize")
    async def tokenize(body: TokenizeInputRequest) -> dict[str, list[int]]:
        return {"tokens": await tokens_of(body.input)}

    @router.post("/extras/tokenize/count", summary="Count the tokens of a text")
    async def count(body: TokenizeInputRequest) -> dict[str, int]:
        return {"count": len(await tokens_of(body.input))}

    @router.post("/extras/detokenize", summary="Detokenize")
    async def detokenize(body: DetokenizeInputRequest) -> dict[str, str]:
        llama = llama_server._llama_proxy()
        if len(body.tokens) > max(llama._n_ctx, _MOST_TOKENS):
            raise HTTPException(413, "there are more tokens than the context holds")
        _check_tokens("tokens", body.tokens, llama._n_vocab)
        async with between_answers():
            data: bytes = await run_in_threadpool(llama.detokenize, body.tokens)
        return {"text": data.decode("utf-8", "replace")}

    return router


def _check_tokens(name: str, tokens: list[int], n_vocab: int) -> None:
    if not all(0 <= token < n_vocab for token in tokens):
        raise HTTPException(422, f"{name}: the model's tokens are the numbers from 0 to {n_vocab - 1}")


@contextlib.contextmanager
def _checked_requests(model: Path) -> Iterator[None]:
    """While the block runs, check completions before they reach llama.cpp, and send errors to the client without
    logging any text of the request."""
    prepare, publish = llama_server.prepare_request_resources, llama_server.get_event_publisher

    def explained(_: Any, error: Exception, body: Any = None) -> tuple[int, Any]:
        status, message = _explain(error, body)
        return status, message | {"message": without_directories(message["message"], model)}

    def prepared(body: Any, proxy: Any, *args: Any) -> Any:
        _check_completion(body, proxy())
        return prepare(body, proxy, *args)

    async def published(*, inner_send_chan: Any, llama_call: Any, body: Any, **options: Any) -> None:
        """A stream has no status left to say that something is wrong: it says so in an event."""

        def calls(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from llama_call(*args, **kwargs)
            except Exception as error:
                yield {"error": explained(None, error, body)[1]}

        try:
            await publish(inner_send_chan=inner_send_chan, llama_call=calls, body=body, **options)
        except Exception as error:
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                async with inner_send_chan:
                    _, message = explained(None, error, body)
                    await inner_send_chan.send({"data": json.dumps({"error": message})})

    with (
        _replaced(llama_server, "prepare_request_resources", prepared),
        _replaced(llama_server, "get_event_publisher", published),
        _replaced(RouteErrorHandler, "error_message_wrapper", explained),
    ):
        yield


def _check_completion(body: Any, llama: llama_cpp.Llama) -> None:
    """Raise HTTPException for what llama.cpp would not survive, or would silently take for something else."""
    if body.logprobs and not llama._logits_all:
        raise HTTPException(422, "logprobs: the server must be started with --logits-all")
    bias = body.logit_bias or {}
    if body.logit_bias_type == "tokens":
        # They are made tokens in the thread that serves all clients.
        if sum(map(len, bias)) > _MOST_BIASED:
            raise HTTPException(422, f"logit_bias: its texts must have at most {_MOST_BIASED} characters together")
    else:
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in bias):
            raise HTTPException(422, "logit_bias: its keys must be numbers of tokens")
        _check_tokens("logit_bias", [int(key) for key in bias], llama._n_vocab)
    if body.seed is not None and not 0 <= body.seed <= _MOST_UINT32:
        raise HTTPException(422, f"seed: must be from 0 to {_MOST_UINT32}")
    for name in ("top_k", "max_tokens", "min_tokens", "logprobs", "top_logprobs"):
        value = getattr(body, name, None)
        if isinstance(value, int) and value >= 2**31:
            raise HTTPException(422, f"{name}: must be less than 2147483648")
    for name in ("logprobs", "top_logprobs"):
        value = getattr(body, name, None)
        if value is not None and value > _MOST_LOGPROBS:
            raise HTTPException(422, f"{name}: must be at most {_MOST_LOGPROBS}")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all(stops):
        raise HTTPException(422, "stop: must not be empty")


async def _answer_to_http_error(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": _error(str(error.detail))}, error.status_code)


async def _answer_to_bad_input(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": _error(str(error))}, 400)


async def _answer_to_bad_fields(_: Request, error: Any) -> JSONResponse:
    return JSONResponse({"error": _error(_bad_fields(error))}, 422)


def _bad_fields(error: RequestValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:_MOST_WRONG])


def _explain(error: Exception, body: Any) -> tuple[int, Any]:
    """Return the status and the error that a client gets. llama-cpp-python's function would log the request."""
    if isinstance(error, HTTPException):
        return error.status_code, _error(str(error.detail))
    if isinstance(error, RequestValidationError):
        return 422, _error(_bad_fields(error))
    if isinstance(error, AssertionError) and isinstance(getattr(body, "prompt", ""), list):
        return 422, _error("prompt: must be one text")
    if isinstance(error, InputError) or str(error) == _CONTEXT_IS_FULL:
        full = "the context was full before the answer ended"
        return 400, _error(str(error) if isinstance(error, InputError) else full)
    for pattern, formatted in RouteErrorHandler.pattern_and_formatters.items():
        match = pattern.search(str(error))
        if match is not None and body is not None:
            known: tuple[int, Any] = formatted(body, match)
            return known
    if type(error) not in _failures_said:
        _failures_said.add(type(error))
        print(f"a request failed: {type(error).__name__}; further ones are not shown", file=sys.stderr)
    return 500, _error(str(error)) | {"type": "internal_server_error"}


def _error(message: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"message": message, "type": "invalid_request_error", "param": None, "code": None}
