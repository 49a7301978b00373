"""Models loaded by llama-cpp-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_cpp import Llama


def load(path: Path, **options: Any) -> Llama:
    """Load a model with a small context and two threads."""
    sizes = {"n_ctx": 256, "n_batch": 64, "n_threads": 2, "n_threads_batch": 2} | options
    return Llama(str(path), verbose=False, **sizes)
