"""Requests of OpenAI's clients, translated to those that llama-cpp-python knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

from coe_native.errors import InputError

Prompt: TypeAlias = "str | list[int]"
"""A text, or token ids."""

_MOST_PROMPTS = 256

_MOST_TOP = 20
"""Maximum likeliest tokens for each token of a scored prompt."""

wants_usage: ContextVar[bool] = ContextVar("wants_usage", default=False)
"""Whether the stream that answers the current request ends with the numbers of its tokens."""


class UnsupportedError(ValueError):
    """A request for something that the server cannot do. Names the field."""


class Translated(NamedTuple):
    """A request that llama-cpp-python knows.

    Attributes:
        body: JSON.
        wants_usage: See `wants_usage`, which is to be set while the request is answered.
    """

    body: bytes
    wants_usage: bool = False


def translated(body: bytes) -> Translated:
    """Translate the body of a completion request to fields and messages that llama-cpp-python knows.

    - ``max_completion_tokens``, which has replaced ``max_tokens``;
    - messages of the role ``developer``, which are a system's;
    - ``content: null``, which clients send beside calls of tools, and contents in parts that are all text;
    - ``stream_options.include_usage``;
    - no ``repeat_penalty``, which is none: OpenAI's API has no such thing, llama-cpp-python's default is 1.1.

    Args:
        body: JSON. Anything but an object is returned unchanged, and the application refuses it.

    Raises:
        UnsupportedError: More than one choice is wanted, or less than one token.
    """
    request = json.loads(body)
    if not isinstance(request, dict):
        return Translated(body)
    if request.get("n") not in (None, 1):
        raise UnsupportedError("n: the server makes one choice for each request; send it again for others")
    limit = request.pop("max_completion_tokens", None)
    if limit is not None:
        request["max_tokens"] = limit
    limit, least = request.get("max_tokens"), 0 if request.get("echo") is True and "messages" not in request else 1
    if isinstance(limit, int) and limit < least:
        raise UnsupportedError("max_tokens: must be at least 1, or 0 with echo")
    request.setdefault("repeat_penalty", 1.0)
    stream_options = request.pop("stream_options", None)
    messages = request.get("messages")
    if isinstance(messages, list):
        request["messages"] = [_message(message) for message in messages]
    includes_usage = isinstance(stream_options, dict) and stream_options.get("include_usage") is True
    return Translated(json.dumps(request).encode(), includes_usage)


def prompts_of(prompt: object) -> list[Prompt]:
    """Return the prompts of a completion request.

    Args:
        prompt: A text, token ids, or a list of texts and of lists of token ids.

    Raises:
        InputError: It is anything else, or has too many prompts.
    """
    if isinstance(prompt, str) or _are_tokens(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise InputError("prompt: must be a text, a list of token ids, or a list of such prompts")
    if len(prompt) > _MOST_PROMPTS:
        raise InputError(f"prompt: at most {_MOST_PROMPTS} can be sent at once")
    if not all(isinstance(each, str) or _are_tokens(each) for each in prompt):
        raise InputError("prompt: must be a text, a list of token ids, or a list of such prompts")
    return prompt


def _are_tokens(prompt: object) -> bool:
    # isinstance would take true for a token.
    return isinstance(prompt, list) and bool(prompt) and all(type(token) is int for token in prompt)


def check_scored(request: Mapping[str, Any]) -> None:
    """Check a completion request that asks for the log-probabilities of its prompts.

    Args:
        request: The request's fields.

    Raises:
        InputError: It asks for something else at the same time.
    """
    if request["stream"]:
        raise InputError("stream: scores of prompts are not streamed")
    if (request["logprobs"] or 0) > _MOST_TOP:
        raise InputError(f"logprobs: must be at most {_MOST_TOP} with echo")
    if request["max_tokens"] not in (0, 1):
        raise InputError("max_tokens: must be 0 or 1 with echo and logprobs, which score the prompt")
    if request["suffix"]:
        raise InputError("suffix: cannot be combined with echo and logprobs")
    if request["max_tokens"] == 0:
        return
    if request["temperature"] != 0:
        raise InputError("temperature: must be 0 with echo and logprobs, or max_tokens must be 0")
    for name, neutral in (("repeat_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0)):
        if (request[name] or neutral) != neutral:
            raise InputError(f"{name}: must be {neutral} with echo and logprobs, or max_tokens must be 0")
    for name in ("grammar", "logit_bias", "stop"):
        if request[name]:
            raise InputError(f"{name}: must not be given with echo and logprobs, or max_tokens must be 0")


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    changed = {key: value for key, value in message.items() if value is not None or key == "content"}
    if changed.get("role") == "developer":
        changed["role"] = "system"
    if changed.get("content") is None:
        changed["content"] = ""
    elif isinstance(changed["content"], list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in changed["content"]]
        if all(isinstance(part, str) for part in parts):
            changed["content"] = "".join(map(str, parts))
    return changed
