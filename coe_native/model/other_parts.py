"""Vision and audio parts in the file of a language model, as Ollama's library has them.

llama.cpp has these parts in a file of their own, and refuses to load a language model with further tensors.
"""

from __future__ import annotations

_TENSORS = ("v.", "a.", "s.", "mm.", "vision.", "audio.", "clip.", "mmproj.", "multi_modal_projector.")
"""What the names of such tensors begin with. Those of language models begin otherwise."""

_KEYS = ("vision.", "audio.", "mm.")
"""What metadata keys about them begin with, after the architecture's name."""


def in_other_part(tensor: str) -> bool:
    """Return whether the name of a tensor is that of a vision or audio part."""
    return tensor.startswith(_TENSORS)


def is_key_of_other_part(architecture: str, key: str) -> bool:
    """Return whether a metadata key describes a vision or audio part."""
    return key.startswith(("clip.", *(f"{architecture}.{start}" for start in _KEYS)))
