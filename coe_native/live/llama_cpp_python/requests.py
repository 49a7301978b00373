"""Checks of requests before llama.cpp sees them, and errors for clients."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import llama_cpp
import llama_cpp.server.app as llama_server
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from llama_cpp.server.errors import RouteErrorHandler
from starlette.responses import JSONResponse

from coe_native.errors import InputError, without_directories
from coe_native.live.llama_cpp_python.replacing import replaced
from coe_native.live.llama_cpp_python.watched import Usage
from coe_native.live.openai_requests import wants_usage

COMPLETIONS = "/v1/completions"

_MOST_BIASED = 4096


_MOST_LOGPROBS = 100


_MOST_WRONG = 5
"""Maximum fields of a request that an error names."""


_MOST_UINT32 = 2**32 - 1


_CONTEXT_IS_FULL = "llama_decode returned 1"
"""The error if the context is full: max_tokens is not checked while an answer's last bytes are not UTF-8."""


_failures_said: set[type[Exception]] = set()
"""Types of unexpected errors that were printed. Each is printed once, so that the log stays short."""


def check_tokens(name: str, tokens: list[int], n_vocab: int) -> None:
    """Check that tokens are in the vocabulary.

    Args:
        name: The request's field, for the message.
        tokens: Token ids.
        n_vocab: Size of the vocabulary.

    Raises:
        HTTPException: One is not in the vocabulary.
    """
    if not all(0 <= token < n_vocab for token in tokens):
        raise HTTPException(422, f"{name}: token ids must be from 0 to {n_vocab - 1}")


@contextlib.contextmanager
def checked_requests(model: Path) -> Iterator[None]:
    """Check completions while the block runs, and send errors to the client.

    Nothing of a request's text is logged.

    Args:
        model: The model's GGUF file, whose directory is left out of messages.
    """
    prepare, publish = llama_server.prepare_request_resources, llama_server.get_event_publisher

    def explained(_: Any, error: Exception, body: Any = None) -> tuple[int, Any]:
        return explain(error, body, model)

    def prepared(body: Any, proxy: Any, *args: Any) -> Any:
        _check_completion(body, proxy())
        return prepare(body, proxy, *args)

    async def published(*, inner_send_chan: Any, llama_call: Any, body: Any, **options: Any) -> None:
        """Publish a stream. Errors are sent as events, because the status was sent before."""
        llama, includes_usage = llama_server._llama_proxy(), wants_usage.get()

        def calls(*args: Any, **kwargs: Any) -> Iterator[Any]:
            before = dataclasses.replace(llama.coe_native_usage)
            chunk = None
            try:
                for chunk in llama_call(*args, **kwargs):
                    yield chunk
                if includes_usage and chunk is not None:
                    yield _usage_chunk(chunk, before, llama.coe_native_usage)
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
        replaced(llama_server, "prepare_request_resources", prepared),
        replaced(llama_server, "get_event_publisher", published),
        replaced(RouteErrorHandler, "error_message_wrapper", explained),
    ):
        yield


def _usage_chunk(last: Any, before: Usage, after: Usage) -> dict[str, Any]:
    """Return what ends a stream that includes its usage, after the last chunk of the answer."""
    prompt, completion = after.prompt - before.prompt, after.completion - before.completion
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    shared = {key: last[key] for key in ("id", "object", "created", "model") if key in last}
    return {**shared, "choices": [], "usage": usage}


async def answer_to_http_error(_: Request, error: Any) -> JSONResponse:
    """Return the answer to an HTTP error."""
    return JSONResponse({"error": _error(str(error.detail))}, error.status_code)


async def answer_to_bad_input(_: Request, error: Exception) -> JSONResponse:
    """Return the answer to an InputError."""
    return JSONResponse({"error": _error(str(error))}, 400)


async def answer_to_bad_fields(request: Request, error: Any) -> JSONResponse:
    """Return the answer to a request whose fields are missing or wrong."""
    status = 400 if request.url.path == COMPLETIONS else 422  # as OpenAI's
    return JSONResponse({"error": _error(_bad_fields(error))}, status)


def _bad_fields(error: RequestValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:_MOST_WRONG])


def explain(error: Exception, body: Any, model: Path) -> tuple[int, Any]:
    """Return the status and the error for a client; llama-cpp-python's function would log the request.

    Args:
        error: What happened.
        body: The request, if it could be read.
        model: The model's GGUF file, whose directory is left out.
    """
    status, message = _explain(error, body)
    return status, message | {"message": without_directories(message["message"], model)}


def _explain(error: Exception, body: Any) -> tuple[int, Any]:
    if isinstance(error, HTTPException):
        return error.status_code, _error(str(error.detail))
    if isinstance(error, RequestValidationError):
        return 422, _error(_bad_fields(error))
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


def _check_completion(body: Any, llama: llama_cpp.Llama) -> None:
    """Raise HTTPException for values that would crash llama.cpp, or that it would silently misread."""
    if body.logprobs and not llama._logits_all:
        raise HTTPException(422, "logprobs: the server must be started with --logits-all")
    bias = body.logit_bias or {}
    if body.logit_bias_type == "tokens":
        # They are tokenized in the thread that serves all clients.
        if sum(map(len, bias)) > _MOST_BIASED:
            raise HTTPException(422, f"logit_bias: its texts must have at most {_MOST_BIASED} characters in all")
    else:
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in bias):
            raise HTTPException(422, "logit_bias: its keys must be token ids")
        check_tokens("logit_bias", [int(key) for key in bias], llama._n_vocab)
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
