"""Routes of the tokenizer: llama-cpp-python's, and those of vLLM, by which lm-evaluation-harness tokenizes."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import llama_cpp.server.app as llama_server
from fastapi import APIRouter, HTTPException
from llama_cpp.server.types import DetokenizeInputRequest, TokenizeInputRequest
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from coe_native.live.llama_cpp_python.between_answers import between_answers
from coe_native.live.llama_cpp_python.requests import check_tokens

_MOST_TOKENS = 1 << 16
"""Maximum tokens to detokenize at once, unless the context is larger: the time grows with the square."""


class _TokenizeRequest(BaseModel):
    prompt: str
    add_special_tokens: bool = True


class _DetokenizeRequest(BaseModel):
    tokens: list[int]


def token_routes() -> APIRouter:
    """Return the routes. llama-cpp-python's own block the server and crash on unknown tokens."""
    router = APIRouter(tags=["Extras"])

    @router.post("/extras/tokenize", summary="Tokenize")
    async def tokenize(body: TokenizeInputRequest) -> dict[str, list[int]]:
        return {"tokens": await _tokens_of(body.input)}

    @router.post("/extras/tokenize/count", summary="Count the tokens of a text")
    async def count(body: TokenizeInputRequest) -> dict[str, int]:
        return {"count": len(await _tokens_of(body.input))}

    @router.post("/extras/detokenize", summary="Detokenize")
    async def detokenize(body: DetokenizeInputRequest) -> dict[str, str]:
        _check_tokens(body.tokens)
        async with between_answers() as proxy:
            data: bytes = await run_in_threadpool(proxy().detokenize, body.tokens)
        return {"text": data.decode("utf-8", "replace")}

    @router.get("/tokenizer_info", summary="Special tokens and the chat template, as vLLM gives them")
    async def info() -> dict[str, Any]:
        return _info(llama_server._llama_proxy())

    @router.post("/tokenize", summary="Tokenize, as vLLM does")
    async def tokenize_prompt(body: _TokenizeRequest) -> dict[str, Any]:
        tokens = await _tokens_of(body.prompt, add_bos=body.add_special_tokens)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": llama_server._llama_proxy()._n_ctx}

    @router.post("/detokenize", summary="Return the text that is tokenized to these tokens, as vLLM does")
    async def prompt_of(body: _DetokenizeRequest) -> dict[str, str]:
        _check_tokens(body.tokens)
        async with between_answers() as proxy:
            data = await run_in_threadpool(_text_of, proxy(), body.tokens)
        return {"prompt": data.decode("utf-8", "replace")}

    return router


async def _tokens_of(text: str, *, add_bos: bool = True) -> list[int]:
    async with between_answers() as proxy:
        tokens: list[int] = await run_in_threadpool(proxy().tokenize, text.encode(), add_bos=add_bos, special=True)
        return tokens


def _check_tokens(tokens: list[int]) -> None:
    llama = llama_server._llama_proxy()
    if len(tokens) > max(llama._n_ctx, _MOST_TOKENS):
        raise HTTPException(413, "there are more tokens than the context holds")
    check_tokens("tokens", tokens, llama._n_vocab)


def _info(llama: llama_cpp.Llama) -> dict[str, Any]:
    def text(token: int) -> str | None:
        return llama._model.token_get_text(token) or None if token >= 0 else None

    return {
        "bos_token": text(llama.token_bos()),
        "eos_token": text(llama.token_eos()),
        "add_bos_token": llama._model.add_bos_token(),
        "model_max_length": llama._n_ctx,
        "chat_template": llama.metadata.get("tokenizer.chat_template"),
    }


def _text_of(llama: llama_cpp.Llama, tokens: list[int]) -> bytes:
    """Return the text of tokens, with special ones. A space that the tokenizer puts before texts is left out."""
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    size = 1 + 8 * len(tokens)
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = llama_cpp.llama_detokenize(llama._model.vocab, ids, len(ids), buffer, size, False, True)
        if length >= 0:
            return buffer.raw[:length]
        size = -length
