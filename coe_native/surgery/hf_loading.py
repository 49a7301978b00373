"""Whether transformers, where it is installed, loads a pruned checkpoint as it loads the parent."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import psutil

from coe_native.errors import CoeError, printable
from coe_native.model.hf_checkpoint import HfCheckpoint

_ROOM = 2
"""Times its size that a checkpoint may need in memory while it is loaded."""

_COMPLAINTS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")

_NOT_THE_CHECKPOINTS_FAULT = (ImportError, MemoryError, TypeError)
"""Errors for a package that is missing or of another version, or for too little memory."""


def check_loads(written: HfCheckpoint, parent: HfCheckpoint, n_bytes: int) -> str | None:
    """Load a checkpoint and compute a token; compare names and shapes only where memory is short.

    Args:
        written: The pruned checkpoint.
        parent: Its parent. What transformers says about both is nothing new.
        n_bytes: Bytes of the pruned checkpoint's tensors.

    Returns:
        What was done; None if it cannot be tried, because transformers is not installed or does not know the
        parent, the checkpoint is quantised, or memory is short and accelerate is not installed.

    Raises:
        CoeError: transformers refuses it, finds tensors missing, unknown or of other shapes, or computes logits
            that are not finite.
    """
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    if parent.config.keys() & {"quantization_config", "quantization"}:
        return None
    computes = n_bytes * _ROOM < psutil.virtual_memory().available
    on_meta = {"device_map": "meta"} if importlib.util.find_spec("accelerate") is not None else None
    place: dict[str, str] | None = {} if computes else on_meta
    with _quiet_transformers() as transformers:
        if place is None or not _is_known(transformers, parent):
            return None
        try:
            model, complaints = _load(transformers, written, place)
            if complaints and on_meta is not None:
                complaints -= _load(transformers, parent, on_meta)[1]
            finite = not computes or _computes_finite(model)
        except _NOT_THE_CHECKPOINTS_FAULT:
            return None
        except Exception as error:  # of whatever kind the model's code raises
            raise CoeError(f"transformers cannot load it: {printable(str(error), 200)}") from error
    if complaints:
        raise CoeError(f"transformers finds {printable(', '.join(sorted(complaints)), 200)}")
    if not finite:
        raise CoeError("transformers computes logits that are not finite")
    if computes:
        return "transformers loads it and computes a token"
    return "transformers has these names and shapes; there is too little memory to load it"


def _is_known(transformers: Any, parent: HfCheckpoint) -> bool:
    try:
        config = transformers.AutoConfig.from_pretrained(parent.path, trust_remote_code=False)
        return type(config) in transformers.AutoModelForCausalLM._model_mapping
    except Exception:
        return False


def _load(transformers: Any, checkpoint: HfCheckpoint, place: dict[str, str]) -> tuple[Any, set[str]]:
    """Return a model, and what transformers says about its tensors."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype="auto",
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **place,
    )
    return model, {f"{kind.replace('_', ' ')}: {found}" for kind in _COMPLAINTS for found in info[kind]}


def _computes_finite(model: Any) -> bool:
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return bool(torch.isfinite(model.eval()(torch.tensor([[0]])).logits).all())


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """Yield transformers, which prints nothing meanwhile."""
    transformers = importlib.import_module("transformers")
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
