"""Loads the compiled module against the very libraries that ``llama_cpp`` uses.

``llama_cpp`` decides which llama.cpp is loaded (its own, or one named in its environment variables), so it
goes first; the module then finds those libraries in the process and refuses another version's.
"""

from __future__ import annotations

import llama_cpp  # noqa: F401  # isort: skip

from coe_native import _core as core  # noqa: TID251

__all__ = ["core"]
