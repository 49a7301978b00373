"""Requests of OpenAI's clients, translated to those that llama-cpp-python knows."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import Any, NamedTuple

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
    - ``stream_options.include_usage``.

    Args:
        body: JSON. Anything but an object is returned unchanged, and the application refuses it.

    Raises:
        UnsupportedError: More than one choice is wanted.
    """
    request = json.loads(body)
    if not isinstance(request, dict):
        return Translated(body)
    if request.get("n") not in (None, 1):
        raise UnsupportedError("n: the server makes one choice for each request; send it again for others")
    limit = request.pop("max_completion_tokens", None)
    if limit is not None:
        request["max_tokens"] = limit
    if request.get("max_tokens") is not None and request["max_tokens"] in (0, -1):
        raise UnsupportedError("max_tokens: must be at least 1")
    stream_options = request.pop("stream_options", None)
    messages = request.get("messages")
    if isinstance(messages, list):
        request["messages"] = [_message(message) for message in messages]
    includes_usage = isinstance(stream_options, dict) and stream_options.get("include_usage") is True
    return Translated(json.dumps(request).encode(), includes_usage)


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
