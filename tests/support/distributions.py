"""Logits, and the distributions of tokens that they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import coe_native as coe


def logits(path: Path, tokens: list[int], mask: coe.ExpertMask | None = None) -> NDArray[np.float32]:
    """Return the logits of all tokens, [n_tokens, n_vocab], with `mask` applied if there is one."""
    with coe.Model(path, n_ctx=128, n_threads=1, f32_kv=True) as model:
        if mask is not None:
            model.apply(mask)
        return model.logits(tokens)


def log_softmax(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return log-probabilities in double precision."""
    shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(of: NDArray[np.float64], from_: NDArray[np.float64]) -> float:
    """Return the mean Kullback-Leibler divergence of log-probabilities, in nats."""
    return float((np.exp(of) * (of - from_)).sum(axis=1).mean())
