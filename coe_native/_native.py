"""Load the compiled module against the libraries that ``llama_cpp`` uses.

``llama_cpp`` decides which llama.cpp is loaded: its own, or one that its environment variables name. It is
imported first, so that the module finds those libraries in the process. Libraries of another version are
refused.
"""

from __future__ import annotations

import importlib.metadata
import re


def required_llama_cpp_python() -> str | None:
    """Return the release of llama-cpp-python that this package was built for; None if it is not installed."""
    try:
        requirements = importlib.metadata.requires("coe-native") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    pins = (re.match(r"llama[-_]cpp[-_]python==([0-9a-z.]+)$", requirement) for requirement in requirements)
    return next((pin[1] for pin in pins if pin), None)


def _refuse_other_release() -> None:
    """Compare releases before anything is loaded, since a library of another release may lack symbols."""
    required = required_llama_cpp_python()
    try:
        installed = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return  # built by hand, without metadata: ggml's version is compared when the module is loaded
    if required is not None and installed.split("+")[0] != required:
        raise ImportError(
            f"coe-native was built for llama-cpp-python {required}, but {installed} is installed; "
            f"run: pip install llama-cpp-python=={required}"
        )


_refuse_other_release()

import llama_cpp  # noqa: E402, F401  # isort: skip

from coe_native import _core as core  # noqa: E402, TID251

__all__ = ["core", "required_llama_cpp_python"]
