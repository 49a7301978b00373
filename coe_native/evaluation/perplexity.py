"""Evaluation on held-out text: perplexity, and the distance to a reference model or to the unmasked parent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.batching import Tokens, tokenize
from coe_native.corpus.documents import Corpus
from coe_native.errors import CoeError, InputError
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.predictions import Comparison, compare, distributions, log_probabilities
from coe_native.masks.expert_mask import ExpertMask

_SHORTEST = 5
"""Tokens of the shortest window whose second half has two tokens to predict, so that they have a spread."""


_LARGEST_EXPONENT = 700.0
"""Beyond it, exp has no finite value."""


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text. `n_scored` tokens were predicted; `perplexity` is exp of their mean
    negative log-probability and `error` the standard error of that exponent times the perplexity.
    With a reference: `kl_divergence`, the mean over positions of KL(reference || model) in nats, `kl_error`, its
    standard error, and `top1_agreement`, the share of positions where both find the same token likeliest."""

    text: str
    n_scored: int
    perplexity: float
    error: float
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    kl_error: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.perplexity < math.inf:
            raise InputError(f"a perplexity is a number above 0, not {self.perplexity}")

    def loss(self, parent: Evaluation) -> float:
        """How much higher the perplexity is than the parent's, as a share of that."""
        return self.perplexity / parent.perplexity - 1


def evaluate(model: LoadedModel, text: Corpus, *, reference: LoadedModel | None = None) -> Evaluation:
    """Perplexity of a loaded model on a text, live mask and all; with `reference`, the distance to it too.

    The protocol is llama-perplexity's: all documents' tokens in one stream, cut into windows of `n_ctx`; a
    window's first token gives way to BOS where the model has that habit; the second half of each window is
    scored. A stream shorter than one window is scored as a shorter one. The distance is what its
    ``--kl-divergence`` gives, but for its rounding of the reference to 16 bits.
    Raises InputError for a text too short to score, or a reference with another vocabulary.
    """
    if reference is not None and not _same_vocabulary(model, reference):
        raise InputError(f"{reference.moe.path}: has another vocabulary than {model.moe.path}")
    tally = _Tally(model, text)
    for window, first in _scored_windows(model, text):
        if reference is None:
            tally.add(log_probabilities(model, window, first))
        else:
            tally.compare(compare(model, distributions(reference, window, first)))
    return tally.result()


def evaluate_masks(
    model: LoadedModel,
    text: Corpus,
    masks: Sequence[ExpertMask],
    *,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Evaluation, tuple[Evaluation, ...]]:
    """The evaluation of a loaded parent, and with each of the masks live, with their distances to the unmasked
    one; by `evaluate`'s protocol. No more than one window's distributions are held, however many masks there are.

    No mask is live when it ends. `progress` is told of tokens that have been run. Raises what `evaluate` and
    `Model.apply` do.
    """
    parent = _Tally(model, text)
    tallies = [_Tally(model, text) for _ in masks]
    try:
        for window, first in _scored_windows(model, text):
            model.clear_mask()
            reference = distributions(model, window, first)
            parent.add(reference.log_probabilities)
            progress(len(window))
            for mask, tally in zip(masks, tallies, strict=True):
                model.apply(mask)
                tally.compare(compare(model, reference))
                progress(len(window))
    finally:
        model.clear_mask()
    return parent.result(), tuple(tally.result() for tally in tallies)


def check_text(model: LoadedModel, text: Corpus) -> None:
    """Raises InputError unless `model` can score `text`."""
    next(_scored_windows(model, text))


def count_tokens(model: LoadedModel, text: Corpus) -> int:
    """Tokens that one evaluation of a text runs."""
    return sum(len(window) for window, _ in _scored_windows(model, text))


class _Tally:
    """What has been found at the scored positions of one text."""

    def __init__(self, model: LoadedModel, text: Corpus) -> None:
        self._model = model
        self._text = text
        self._log_probabilities: list[NDArray[np.float64]] = []
        self._divergences: list[NDArray[np.float64]] = []
        self._agreements: list[NDArray[np.bool_]] = []

    def add(self, log_probabilities: NDArray[np.float64]) -> None:
        self._log_probabilities.append(log_probabilities)

    def compare(self, found: Comparison) -> None:
        self.add(found.log_probabilities)
        self._divergences.append(found.divergences)
        self._agreements.append(found.same_top)

    def result(self) -> Evaluation:
        values = np.concatenate(self._log_probabilities)
        if not np.isfinite(values).all() or -values.mean() > _LARGEST_EXPONENT:
            raise CoeError(f"{self._model.moe.path}: gives {self._text.name} no finite perplexity; it is damaged")
        perplexity = math.exp(-values.mean())
        error = perplexity * _error_of_mean(values)
        if not self._divergences:
            return Evaluation(self._text.name, len(values), perplexity, error)
        divergences = np.concatenate(self._divergences)
        if not np.isfinite(divergences).all():
            raise CoeError(
                f"{self._model.moe.path}: finds impossible what the reference expects of {self._text.name}, so "
                "there is no divergence"
            )
        agreement = float(np.concatenate(self._agreements).mean())
        kl, kl_error = float(divergences.mean()), _error_of_mean(divergences)
        return Evaluation(self._text.name, len(values), perplexity, error, kl, agreement, kl_error)


def _error_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _same_vocabulary(model: LoadedModel, reference: LoadedModel) -> bool:
    """Whether their tokens mean the same: as many, with the same texts where both say."""
    if model.n_vocab != reference.n_vocab:
        return False
    texts = [loaded.moe.vocabulary_bytes for loaded in (model, reference)]
    return texts[0] == texts[1] or not all(texts)


def _scored_windows(model: LoadedModel, text: Corpus) -> Iterator[tuple[Tokens, int]]:
    """Windows of a text, each with the index of its first scored token."""
    if not model.predicts:
        raise InputError(
            f"{model.moe.path}: is an encoder or a diffusion model, which sees the tokens that it would have to "
            "predict, so it has no perplexity"
        )
    if model.n_ctx < _SHORTEST:
        raise InputError(f"evaluation needs windows of at least {_SHORTEST} tokens, not {model.n_ctx} (--ctx)")
    stream = np.concatenate([tokenize(document, model.text) for document in text.documents])
    n_ctx = min(model.n_ctx, len(stream))
    if n_ctx < _SHORTEST:
        raise InputError(f"{text.name}: has {len(stream)} tokens, too few to predict any")
    bos = model.text.bos_token
    for start in range(0, len(stream) - n_ctx + 1, n_ctx):
        window = stream[start : start + n_ctx].copy()
        if bos is not None:
            window[0] = bos
        yield window, n_ctx // 2 + 1
