"""Models loaded by llama-cpp-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_cpp import Llama

from coe_native.live.llama_cpp_python.app import placed
from coe_native.llama.options import Placement


def load(path: Path, **options: Any) -> Llama:
    """Load a model with a small context and two threads."""
    sizes = {"n_ctx": 256, "n_batch": 64, "n_threads": 2, "n_threads_batch": 2} | options
    with placed(Placement()):  # without llama.cpp's code for AMX, which is not sound
        return Llama(str(path), verbose=False, **sizes)
