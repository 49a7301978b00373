"""Whether transformers, where it is installed, can load a pruned checkpoint."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import psutil

from coe_native.errors import CoeError, printable
from coe_native.model.hf_checkpoint import HfCheckpoint

_ROOM = 2
"""Times its size that a checkpoint may need in memory while it is loaded."""


def can_be_tried(parent: HfCheckpoint) -> bool:
    """Return whether transformers is installed and knows the parent's architecture.

    Quantised checkpoints cannot be tried: what transformers needs for them differs.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return False
    if parent.config.keys() & {"quantization_config", "quantization"}:
        return False
    try:
        config = _quiet_transformers().AutoConfig.from_pretrained(parent.path, trust_remote_code=False)
        return type(config) in _quiet_transformers().AutoModelForCausalLM._model_mapping
    except Exception:
        return False


def load(written: HfCheckpoint, n_bytes: int) -> str:
    """Load a checkpoint and compute a token, or compare names and shapes only where memory is short.

    Returns:
        What was done.

    Raises:
        CoeError: transformers refuses it, or finds tensors missing, unknown or of other shapes, or logits are not
            finite.
    """
    computes = n_bytes * _ROOM < psutil.virtual_memory().available
    if not computes and importlib.util.find_spec("accelerate") is None:
        return "not tried: too large for this machine's memory, and accelerate is not installed"
    torch, transformers = importlib.import_module("torch"), _quiet_transformers()
    place: dict[str, Any] = {} if computes else {"device_map": "meta"}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            written.path, dtype="auto", trust_remote_code=False, output_loading_info=True, **place
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if found := sorted(map(str, info[kind])):
                raise CoeError(f"transformers finds {kind.replace('_', ' ')}: {printable(', '.join(found), 200)}")
        if not computes:
            return "transformers has these names and shapes; it is too large for this machine's memory"
        with torch.no_grad():
            finite = bool(torch.isfinite(model.eval()(torch.tensor([[0]])).logits).all())
    except CoeError:
        raise
    except Exception as error:  # of whatever kind the model's code raises
        raise CoeError(f"transformers cannot load it: {printable(str(error), 200)}") from error
    if not finite:
        raise CoeError("transformers computes logits that are not finite")
    return "transformers loads it and computes a token"


def _quiet_transformers() -> Any:
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
