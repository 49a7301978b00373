"""llama-cpp-python's server for one model, with the changes that it needs.

Whatever a client sends is checked before llama.cpp sees it, because llama.cpp may end the process on bad
input. Chat templates and grammars run in helper processes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._internals as llama_internals
import llama_cpp.llama_cpp as llama_api
import llama_cpp.server.app as llama_server
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from llama_cpp.server.settings import ModelSettings, ServerSettings
from starlette.exceptions import HTTPException as StarletteHTTPException

from coe_native._native import core
from coe_native.cores import available_cores
from coe_native.errors import CoeError, InputError, printable
from coe_native.live.llama_cpp_python.completions import completion_routes
from coe_native.live.llama_cpp_python.isolated import isolated_chat_templates, isolated_grammars
from coe_native.live.llama_cpp_python.replacing import replaced, without_variable
from coe_native.live.llama_cpp_python.requests import (
    COMPLETIONS,
    answer_to_bad_fields,
    answer_to_bad_input,
    answer_to_http_error,
    checked_requests,
)
from coe_native.live.llama_cpp_python.tokenizer import token_routes
from coe_native.llama.deep_stack import with_stack_for
from coe_native.llama.memory import check_context
from coe_native.llama.options import ModelOptions
from coe_native.llama.text_only import loadable
from coe_native.model.header import ModelHeader

_ERROR = 4
"""ggml.h's GGML_LOG_LEVEL_ERROR. llama-cpp-python uses older numbers, so it shows warnings and hides errors."""

_PAGES = ("/docs", "/docs/oauth2-redirect", "/redoc")
"""Pages that load scripts from other sites."""

_REPLACED = (COMPLETIONS, "/extras/tokenize", "/extras/tokenize/count", "/extras/detokenize")
"""Paths of routes that are not llama-cpp-python's."""

_LONGEST_RUN = 1 << 18
"""Twice the maximum run of characters to tokenize: about 120 MB of stack."""


_errors: list[str] = []


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


@llama_api.llama_log_callback  # type: ignore[untyped-decorator]
def _show_errors(level: int, text: bytes, _: int) -> None:
    if level == _ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class _ArgumentsAlone:
    """A base for settings that are not read from environment variables such as SEED and LORA_PATH."""

    @classmethod
    def settings_customise_sources(cls, _: type, init_settings: Any, **__: Any) -> tuple[Any, ...]:
        return (init_settings,)


class _ModelSettings(_ArgumentsAlone, ModelSettings):  # type: ignore[misc]
    pass


class _ServerSettings(_ArgumentsAlone, ServerSettings):  # type: ignore[misc]
    pass


@contextlib.contextmanager
def llama_app(
    model: Path, options: ModelOptions, *, logits_all: bool
) -> Iterator[tuple[FastAPI, llama_cpp.Llama]]:
    """Load a model into llama-cpp-python's application.

    Args:
        model: The model's GGUF file.
        options: How to load it.
        logits_all: Compute logits of every prompt token.

    Yields:
        The application, and the Llama that it uses.

    Raises:
        CoeError: llama.cpp cannot load the model.
    """
    moe = ModelHeader(model)
    if moe.is_causal and not (options.n_gpu_layers and core.free_gpu_memory()):
        check_context(moe, options)
    settings = _ModelSettings(
        model=str(model),
        model_alias=moe.path.stem,
        n_gpu_layers=options.n_gpu_layers,
        n_ctx=options.n_ctx,
        n_batch=options.n_batch,
        n_ubatch=options.n_batch,
        n_threads=options.n_threads or available_cores(),
        n_threads_batch=options.n_threads or available_cores(),
        logits_all=logits_all,
        use_mlock=False,
        cache=False,  # its states would be used after a mask has changed
        verbose=False,
    )
    # API keys are checked before a request reaches the application.
    server_settings = _ServerSettings(interrupt_requests=False)  # a second request waits for the first answer
    _errors.clear()
    llama_api.llama_log_set(_keep_errors, None)
    tokenize = llama_internals.LlamaModel.tokenize
    tokenizing = threading.Lock()

    def tokenize_safely(self: Any, text: bytes, *args: Any, **options: Any) -> Any:
        core.prepare_thread_for_crashes()
        with tokenizing:
            return with_stack_for(text, lambda: tokenize(self, text, *args, **options), most=_LONGEST_RUN)

    kept = [route for route in llama_server.router.routes if route.path not in _REPLACED]
    with (
        replaced(llama_server.router, "routes", kept),
        replaced(llama_internals.LlamaModel, "tokenize", tokenize_safely),
        isolated_chat_templates(),
        isolated_grammars(model),
    ):
        try:
            with placed(options), without_variable("CONFIG_FILE"), loadable(moe) as path:
                settings.model = str(path)
                app: FastAPI = llama_server.create_app(server_settings=server_settings, model_settings=[settings])
        except (ValueError, RuntimeError) as error:
            reason = printable(_errors[0] if _errors else str(error))
            raise CoeError(f"{model}: llama.cpp cannot load it: {reason}") from error
        llama_api.llama_log_set(_show_errors, None)
        llama = llama_server._llama_proxy()
        llama.model_path = str(model)
        # As coe-native's other commands, so that scores are the same; the context that `attach` makes has it.
        llama.context_params.flash_attn_type = llama_api.LLAMA_FLASH_ATTN_TYPE_AUTO
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") not in _PAGES]
        app.include_router(completion_routes(model))
        app.include_router(token_routes())
        app.add_exception_handler(StarletteHTTPException, answer_to_http_error)
        app.add_exception_handler(InputError, answer_to_bad_input)
        app.add_exception_handler(RequestValidationError, answer_to_bad_fields)
        try:
            with checked_requests(model):
                yield app, llama
        finally:
            # Before the interpreter frees llama.cpp's callbacks, and not while another thread tokenizes.
            with tokenizing:
                llama_server._llama_proxy.free()


@contextlib.contextmanager
def placed(options: ModelOptions) -> Iterator[None]:
    """Place the models that llama-cpp-python loads in the block as the options say.

    llama-cpp-python has no options of its own for devices and for experts in host memory.

    Args:
        options: Devices, and blocks whose experts stay in host memory.
    """
    where = core.WeightPlacement(devices=list(options.devices), n_cpu_moe=options.n_cpu_moe)
    defaults = llama_api.llama_model_default_params

    def params_with_placement() -> Any:
        params = defaults()
        params.devices = where.devices or None
        params.tensor_buft_overrides = where.overrides or None
        params.use_extra_bufts = where.repack
        return params

    with replaced(llama_api, "llama_model_default_params", params_with_placement):
        yield
