"""Evaluation on held-out text: perplexity, and the distance to a reference model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native.batching import Tokens, tokenize
from coe_native.corpus import Corpus
from coe_native.errors import CoeError, InputError
from coe_native.runtime import Model

_SHORTEST = 5
"""Tokens of the shortest window whose second half has two tokens to predict, so that they have a spread."""


_LARGEST_EXPONENT = 700.0
"""Beyond it, exp has no finite value."""


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text. `n_scored` tokens were predicted; `perplexity` is exp of their mean
    negative log-probability and `error` the standard error of that exponent times the perplexity.
    With a reference: `kl_divergence`, the mean over positions of KL(reference || model) in nats, and
    `top1_agreement`, the share of positions where both find the same token likeliest."""

    text: str
    n_scored: int
    perplexity: float
    error: float
    kl_divergence: float | None = None
    top1_agreement: float | None = None


def evaluate(model: Model, text: Corpus, *, reference: Model | None = None) -> Evaluation:
    """Perplexity of a loaded model on a text, live mask and all; with `reference`, the distance to it too.

    The protocol is llama-perplexity's: all documents' tokens in one stream, cut into windows of `n_ctx`; a
    window's first token gives way to BOS where the model has that habit; the second half of each window is
    scored. A stream shorter than one window is scored as a shorter one.
    Raises InputError for a text too short to score, or a reference with another vocabulary.
    """
    if reference is not None and reference.n_vocab != model.n_vocab:
        raise InputError(f"{reference.moe.path}: has another vocabulary than {model.moe.path}")
    log_probabilities = []
    divergences = []
    agreements = []
    for window, first in _scored_windows(model, text):
        if reference is None:
            log_probabilities.append(model.log_probabilities(window, first))
        else:
            ours = _log_softmax(model.logits(window)[first - 1 : -1])
            theirs = _log_softmax(reference.logits(window)[first - 1 : -1])
            log_probabilities.append(ours[np.arange(len(ours)), window[first:]])
            # In parts: each of these arrays is as large as the logits.
            for rows in np.array_split(np.arange(len(ours)), -(-len(ours) // 32)):
                divergences.append((np.exp(theirs[rows]) * (theirs[rows] - ours[rows])).sum(axis=1))
            agreements.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
    values = np.concatenate(log_probabilities)
    if not np.isfinite(values).all() or -values.mean() > _LARGEST_EXPONENT:
        raise CoeError(f"{model.moe.path}: gives {text.name} no finite perplexity; it is damaged")
    perplexity = math.exp(-values.mean())
    return Evaluation(
        text.name,
        len(values),
        perplexity,
        perplexity * float(values.std(ddof=1)) / math.sqrt(len(values)),
        float(np.concatenate(divergences).mean()) if divergences else None,
        float(np.concatenate(agreements).mean()) if agreements else None,
    )


def check_text(model: Model, text: Corpus) -> None:
    """Raises InputError unless `model` can score `text`."""
    next(_scored_windows(model, text))


def _scored_windows(model: Model, text: Corpus) -> Iterator[tuple[Tokens, int]]:
    """Windows of a text, each with the index of its first scored token."""
    if not model.predicts:
        raise InputError(
            f"{model.moe.path}: is an encoder or a diffusion model, which sees the tokens that it would have to "
            "predict, so it has no perplexity"
        )
    if model.n_ctx < _SHORTEST:
        raise InputError(f"evaluation needs windows of at least {_SHORTEST} tokens, not {model.n_ctx} (--ctx)")
    stream = np.concatenate([tokenize(document, model) for document in text.documents])
    n_ctx = min(model.n_ctx, len(stream))
    if n_ctx < _SHORTEST:
        raise InputError(f"{text.name}: has {len(stream)} tokens, too few to predict any")
    for start in range(0, len(stream) - n_ctx + 1, n_ctx):
        window = stream[start : start + n_ctx].copy()
        if model.bos_token is not None:
            window[0] = model.bos_token
        yield window, n_ctx // 2 + 1


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
