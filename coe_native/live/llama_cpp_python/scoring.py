"""What a model predicts for the tokens of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import CoeError

_LOGITS_AT_ONCE = 1 << 19
"""Logits of which copies in double precision are made at once: 4 MiB each."""


@dataclass(frozen=True)
class Predictions:
    """Natural log-probabilities after each token of a prompt.

    Attributes:
        log_probabilities: Those of the prompt's own tokens from the second on, float64 [n_tokens - 1].
        top: The likeliest next tokens, the likeliest first, int64 [n_tokens, n_top].
        top_log_probabilities: Their log-probabilities, float64 [n_tokens, n_top].
    """

    log_probabilities: NDArray[np.float64]
    top: NDArray[np.int64]
    top_log_probabilities: NDArray[np.float64]


def predictions(llama: Any, tokens: list[int], n_top: int) -> Predictions:
    """Run a prompt and return what the model predicts after each of its tokens.

    The tokens are counted as a prompt's. Only the logits of one batch are kept at once.

    Args:
        llama: The attached Llama.
        tokens: Token ids, at least one and at most the context.
        n_top: Number of likeliest tokens, at least 1.

    Raises:
        CoeError: Logits are not finite.
        RuntimeError: llama.cpp fails, or the Llama was interrupted.
    """
    llama.reset()
    llama._ctx.kv_cache_seq_rm(-1, 0, -1)
    parts: list[Predictions] = []
    for start in range(0, len(tokens), llama.n_batch):
        batch = tokens[start : start + llama.n_batch]
        following = tokens[start + 1 : start + 1 + len(batch)]
        with llama.coe_native_in_use:
            llama._batch.set_batch(batch=batch, n_past=start, logits_all=True)
            llama._ctx.decode(llama._batch)
            logits = np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(len(batch), llama._n_vocab))
            step = max(1, _LOGITS_AT_ONCE // llama._n_vocab)
            for low in range(0, len(batch), step):
                parts.append(_predictions(logits[low : low + step], following[low : low + step], n_top))
    return Predictions(
        np.concatenate([part.log_probabilities for part in parts]),
        np.concatenate([part.top for part in parts]),
        np.concatenate([part.top_log_probabilities for part in parts]),
    )


def _predictions(logits: NDArray[np.float32], following: list[int], n_top: int) -> Predictions:
    """Return the predictions of rows of logits. The last row of a prompt has no following token."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    if not np.isfinite(values.max(axis=1)).all():
        raise CoeError("the model's logits are not finite")
    top = np.argpartition(values, -n_top, axis=1)[:, -n_top:] if n_top > 1 else values.argmax(axis=1)[:, None]
    order = np.argsort(-np.take_along_axis(values, top, axis=1), axis=1, kind="stable")
    top = np.take_along_axis(top, order, axis=1)
    return Predictions(values[np.arange(len(following)), following], top, np.take_along_axis(values, top, axis=1))
