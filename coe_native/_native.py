"""Load the compiled module against the libraries that ``llama_cpp`` uses.

``llama_cpp`` decides which llama.cpp is loaded: its own, or one that its environment variables name. It is
imported first, so that the module finds those libraries in the process. Libraries of another version are
refused.
"""

from __future__ import annotations

import llama_cpp  # noqa: F401  # isort: skip

from coe_native import _core as core  # noqa: TID251

__all__ = ["core"]
