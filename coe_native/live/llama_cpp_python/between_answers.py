"""The model's queue: one request uses it at a time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import llama_cpp.server.app as llama_server


@contextlib.asynccontextmanager
async def between_answers() -> AsyncIterator[Any]:
    """Wait for the model, and hold requests back while the block runs.

    Yields:
        llama-cpp-python's proxy, which returns the Llama when it is called.
    """
    async with contextlib.asynccontextmanager(llama_server.get_llama_proxy)() as proxy:
        yield proxy
