"""What a loaded model predicts in a window: log-probabilities, and the distance to a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.batching import Tokens
from coe_native.llama.errors import naming
from coe_native.llama.loaded_model import LoadedModel, as_window


@dataclass(frozen=True)
class Distributions:
    """The distributions that a model predicts for the tokens of a window from index `first` on.

    Attributes:
        window: The tokens, int32 [n_tokens].
        first: The first predicted token.
        logits: float32 [n_tokens - first, n_vocab].
        normalisers: What to subtract from the logits to get natural log-probabilities, float64 [n_tokens - first].
    """

    window: Tokens
    first: int
    logits: NDArray[np.float32]
    normalisers: NDArray[np.float64]

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Return those of the window's own tokens, float64 [n_tokens - first]."""
        tokens = self.window[self.first :]
        return np.asarray(self.logits[np.arange(len(tokens)), tokens] - self.normalisers)


@dataclass(frozen=True)
class Comparison:
    """A model's predictions beside a reference's, each [n_tokens - first].

    Attributes:
        log_probabilities: The model's own, as `log_probabilities` gives them, float64.
        divergences: KL(reference || model) in nats, float64.
        same_top: Whether both find the same token most likely, bool.
    """

    log_probabilities: NDArray[np.float64]
    divergences: NDArray[np.float64]
    same_top: NDArray[np.bool_]


def log_probabilities(model: LoadedModel, tokens: Sequence[int] | Tokens, first: int = 1) -> NDArray[np.float64]:
    """Return natural log-probabilities of the tokens from index `first` (1 or more) on, each given those before.

    Returns:
        float64 [n_tokens - first].
    """
    window = as_window(tokens)
    values = [np.empty(0)]
    for row, low, high in _predictions(model, window, first):
        with naming(model.moe.path):
            values.append(model.session.log_probabilities(row, window[low + 1 : high + 1]))
    return np.concatenate(values)


def distributions(model: LoadedModel, tokens: Sequence[int] | Tokens, first: int = 1) -> Distributions:
    """Return the distributions for the tokens of one window from index `first` (1 or more) on."""
    window = as_window(tokens)
    logits = [np.empty((0, model.n_vocab), np.float32)]
    normalisers = [np.empty(0)]
    for row, low, high in _predictions(model, window, first):
        with naming(model.moe.path):
            logits.append(model.session.logits(row, high - low))
            normalisers.append(model.session.normalisers(row, high - low))
    return Distributions(window, first, np.concatenate(logits), np.concatenate(normalisers))


def compare(model: LoadedModel, reference: Distributions) -> Comparison:
    """Run the reference's window, and compare the model's predictions with the reference's.

    The reference is another model's, or this one's with another mask.
    """
    window, first = reference.window, reference.first
    values, divergences, same_top = [np.empty(0)], [np.empty(0)], [np.empty(0, np.bool_)]
    for row, low, high in _predictions(model, window, first):
        rows = slice(low - first + 1, high - first + 1)
        with naming(model.moe.path):
            values.append(model.session.log_probabilities(row, window[low + 1 : high + 1]))
            of_rows, same = model.session.divergences(row, reference.logits[rows], reference.normalisers[rows])
        divergences.append(of_rows)
        same_top.append(same)
    return Comparison(np.concatenate(values), np.concatenate(divergences), np.concatenate(same_top))


def _predictions(model: LoadedModel, window: Tokens, first: int) -> Iterator[tuple[int, int, int]]:
    """Run a window batch by batch.

    Yields:
        For each batch, the row of the first output that predicts a token from index `first` on, and the range of
        positions in the window whose outputs do.
    """
    start = 0
    for batch in model.decode_window(window, first - 1):
        end = start + len(batch.tokens)
        low, high = max(start, first - 1), min(end, len(window) - 1)
        if high > low:
            yield low - start, low, high
        start = end
