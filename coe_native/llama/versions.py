"""Versions of llama.cpp and the devices that it finds, for reports of problems."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from coe_native._native import core


def describe_llama_cpp() -> dict[str, Any]:
    """Return the versions of the loaded llama.cpp and the devices that it can compute on.

    Returns:
        ``llama_cpp_python``, ``ggml``, ``ggml_commit``, ``system`` (the CPU features that it was built for), and
        ``devices``, each with its name, description, backend, total and free bytes.
    """
    try:
        release = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:  # llama_cpp is there, built by hand
        release = None
    return {
        "llama_cpp_python": release,
        "ggml": core.ggml_version,
        "ggml_commit": core.ggml_commit,
        "system": core.system_info().strip(" |"),
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "backend": device.backend,
                "total_bytes": device.total_memory,
                "free_bytes": device.free_memory,
            }
            for device in core.describe_devices()
        ],
    }
