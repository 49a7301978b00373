"""`/v1/completions`: prompts as texts or token ids, several at once, and the scores of their own tokens.

llama-cpp-python's route takes one text. Its log-probabilities of a prompt need memory for context times
vocabulary, belong to the wrong tokens if the model adds no BOS, and lack the last one if the answer ends at once.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import llama_cpp.server.app as llama_server
from fastapi import APIRouter, HTTPException, Request
from llama_cpp.server.types import CreateCompletionRequest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from coe_native.errors import InputError
from coe_native.live.llama_cpp_python.between_answers import between_answers
from coe_native.live.llama_cpp_python.requests import COMPLETIONS, explain
from coe_native.live.llama_cpp_python.scoring import predictions
from coe_native.live.openai_requests import Prompt, check_scored, prompts_of

_MOST_ENTRIES = 1 << 18
"""Maximum log-probabilities in one answer, unless the context is larger."""

_LEAST = -9999.0
"""Log-probability of what is impossible: JSON has no infinity."""

_NOT_FOR_LLAMA = frozenset({"n", "best_of", "logit_bias_type", "user", "min_tokens", "prompt", "echo"})


class CompletionRequest(CreateCompletionRequest):  # type: ignore[misc]
    """llama-cpp-python's request, with any prompt: `prompts_of` checks it."""

    prompt: Any = ""


class _Tokens(NamedTuple):
    """A prompt for scoring.

    Attributes:
        text: Its text.
        ids: Its token ids.
        bos: The BOS that the model adds, or nothing. It is not echoed.
    """

    text: str
    ids: list[int]
    bos: list[int]


def completion_routes(model: Path) -> APIRouter:
    """Return the route of completions.

    Args:
        model: The model's GGUF file, whose directory is left out of messages.
    """
    router = APIRouter(tags=["OpenAI V1"])

    @router.post(COMPLETIONS, summary="Completion", response_model=None)
    async def create_completion(request: Request, body: CompletionRequest) -> Any:
        try:
            prompts = prompts_of(body.prompt)
            _check_tokens(prompts, llama_server._llama_proxy())
            if body.echo and (body.logprobs is not None or body.max_tokens == 0):
                check_scored(body.model_dump(exclude={"prompt"}))
                return await _json(await _scored(request, body, prompts))
            if body.stream:
                if len(prompts) > 1:
                    raise InputError("stream: one prompt can be streamed at once")
                body.prompt = prompts
                return await llama_server.create_completion(request, body)
            return await _json(await _generated(request, body, prompts))
        except HTTPException:
            raise
        except Exception as error:
            status, message = explain(error, body, model)
            return JSONResponse({"error": message}, status)

    return router


async def _json(answer: dict[str, Any]) -> Response:
    """Return an answer as JSON. llama-cpp-python's log-probabilities are NumPy's numbers."""
    text = await run_in_threadpool(json.dumps, answer, default=float, allow_nan=False)
    return Response(text, media_type="application/json")


def _check_tokens(prompts: list[Prompt], llama: llama_cpp.Llama) -> None:
    """Check that token ids are in the vocabulary, and warn once if the BOS is missing."""
    given = [prompt for prompt in prompts if isinstance(prompt, list)]
    if not all(0 <= token < llama._n_vocab for prompt in given for token in prompt):
        raise InputError(f"prompt: token ids must be from 0 to {llama._n_vocab - 1}")
    bos = _added_bos(llama)
    if bos and any(prompt[:1] != bos for prompt in given):
        _warn_of_missing_bos(llama._model.token_get_text(bos[0]))


@cache
def _warn_of_missing_bos(bos: str) -> None:
    print(
        f"a prompt of token ids does not begin with {bos}, which the model expects; send texts, to which the "
        f"server adds it, or add it in the client (not shown again)",
        file=sys.stderr,
    )


def _added_bos(llama: llama_cpp.Llama) -> list[int]:
    """Return the BOS that the model's tokenizer puts before texts, or nothing."""
    bos = llama.token_bos()
    return [bos] if bos >= 0 and llama._model.add_bos_token() else []


async def _generated(request: Request, body: CompletionRequest, prompts: list[Prompt]) -> dict[str, Any]:
    """Return an answer for each prompt, all computed with the same mask."""
    choices, usages = [], []
    answer: dict[str, Any] = {}
    async with between_answers() as proxy:
        for index, prompt in enumerate(prompts):
            options = body.model_dump(exclude=_NOT_FOR_LLAMA)
            llama = llama_server.prepare_request_resources(body, proxy, body.model, options)
            await _check_connected(request)
            answer = await run_in_threadpool(llama, prompt=prompt, **options)
            (choice,) = answer["choices"]
            if body.echo:
                choice["text"] = _text_of(prompt, _pieces(llama)) + choice["text"]
            choices.append({**choice, "index": index})
            usages.append(answer["usage"])
    return {**answer, "choices": choices, "usage": {key: sum(each[key] for each in usages) for key in usages[0]}}


async def _scored(request: Request, body: CompletionRequest, prompts: list[Prompt]) -> dict[str, Any]:
    """Return the prompts with the log-probabilities of their tokens, and at most one more token for each."""
    choices = []
    n_prompt = 0
    async with between_answers() as proxy:
        llama = proxy(body.model)
        pieces = _pieces(llama)
        given = await run_in_threadpool(lambda: [_tokens_of(prompt, llama, pieces) for prompt in prompts])
        _check_sizes(given, body, llama)
        for index, prompt in enumerate(given):
            await _check_connected(request)
            choice = await run_in_threadpool(_score, llama, prompt, body, pieces)
            choices.append({**choice, "index": index})
            n_prompt += len(prompt.bos) + len(prompt.ids)
        name = body.model or llama.model_path
    n_completion = len(choices) if body.max_tokens else 0
    return {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": choices,
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
        },
    }


async def _check_connected(request: Request) -> None:
    if await request.is_disconnected():
        raise HTTPException(400, "the client has disconnected")


def _tokens_of(prompt: Prompt, llama: llama_cpp.Llama, pieces: Callable[[int], bytes]) -> _Tokens:
    """Tokenize a text as it is before an answer; token ids are taken as they are."""
    if isinstance(prompt, list):
        return _Tokens(_text_of(prompt, pieces), prompt, [])
    ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    bos = _added_bos(llama)
    return _Tokens(prompt, ids, [] if ids[:1] == bos else bos)


def _check_sizes(given: list[_Tokens], body: CompletionRequest, llama: llama_cpp.Llama) -> None:
    sizes = [len(prompt.bos) + len(prompt.ids) for prompt in given]
    if not all(sizes):
        raise InputError("prompt: must not be empty")
    if max(sizes) > llama._n_ctx:
        raise InputError(f"prompt: has {max(sizes)} tokens, and the context has room for {llama._n_ctx}")
    most = max(llama._n_ctx, _MOST_ENTRIES)
    if sum(sizes) * max(1, body.logprobs or 0) > most:
        raise InputError(f"prompt: the answer would have more than {most} log-probabilities; send fewer at once")


def _score(
    llama: llama_cpp.Llama, prompt: _Tokens, body: CompletionRequest, pieces: Callable[[int], bytes]
) -> dict[str, Any]:
    """Run a prompt, and return its choice in the answer."""
    choice: dict[str, Any] = {"text": prompt.text, "logprobs": None, "finish_reason": "length"}
    if body.logprobs is None:
        return choice
    n_top = min(max(1, body.logprobs), llama._n_vocab)
    found = predictions(llama, prompt.bos + prompt.ids, n_top)
    # Nothing predicts the first token of all.
    values: list[float | None] = [*([] if prompt.bos else [None]), *found.log_probabilities.tolist()]
    rows: list[Any] = [*([] if prompt.bos else [None]), *zip(found.top, found.top_log_probabilities, strict=True)]
    ids = list(prompt.ids)
    if body.max_tokens:
        # Also if it ends the answer: clients count on one more entry.
        best, best_values = rows[-1]
        ids.append(int(best[0]))
        values.append(float(best_values[0]))
        if llama_cpp.llama_vocab_is_eog(llama._model.vocab, ids[-1]):
            choice["finish_reason"] = "stop"
        else:
            choice["text"] += pieces(ids[-1]).decode("utf-8", "replace")
    texts = [pieces(token) for token in ids]
    choice["logprobs"] = {
        "tokens": [text.decode("utf-8", "replace") for text in texts],
        "text_offset": _offsets(texts, prompt),
        "token_logprobs": [None if value is None else max(value, _LEAST) for value in values],
        "top_logprobs": [
            None if row is None or value is None else _top(row, body.logprobs, token, value, pieces)
            for row, token, value in zip(rows, ids, values, strict=False)
        ],
    }
    return choice


def _top(
    row: tuple[Any, Any], n_top: int, token: int, value: float, pieces: Callable[[int], bytes]
) -> dict[str, float]:
    """Return the likeliest tokens and the prompt's own. Of tokens with the same text, the likeliest counts."""
    found: dict[str, float] = {}
    pairs = [*zip(row[0][:n_top].tolist(), row[1][:n_top].tolist(), strict=True), (token, value)]
    for each, its_value in pairs:
        found.setdefault(pieces(each).decode("utf-8", "replace"), max(its_value, _LEAST))
    return found


def _offsets(texts: list[bytes], prompt: _Tokens) -> list[int]:
    """Return the index in the prompt's text at which each token begins."""
    # Some tokenizers put a space before texts.
    end = -1 if texts and texts[0][:1] == b" " and not prompt.text.startswith(" ") else 0
    offsets = []
    for text in texts:
        offsets.append(max(0, end))
        end += sum((byte & 0xC0) != 0x80 for byte in text)  # bytes that begin a character
    return offsets


def _text_of(prompt: Prompt, pieces: Callable[[int], bytes]) -> str:
    return prompt if isinstance(prompt, str) else b"".join(map(pieces, prompt)).decode("utf-8", "replace")


def _pieces(llama: llama_cpp.Llama) -> Callable[[int], bytes]:
    """Return a function that returns the text of a token, of special ones too."""

    @cache
    def piece(token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_token_to_piece(llama._model.vocab, token, buffer, size, 0, True)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    return piece
