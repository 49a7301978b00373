"""Evaluate models on held-out text: perplexity, and divergence from a reference or the unmasked parent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe_native.corpus.batching import Tokens, tokenize
from coe_native.corpus.corpora import Corpus
from coe_native.errors import CoeError, InputError
from coe_native.llama.loaded_model import LoadedModel
from coe_native.llama.predictions import Comparison, compare, distributions, log_probabilities
from coe_native.masks.expert_mask import ExpertMask

_SHORTEST = 5
"""Tokens of the shortest window. Its second half has two tokens to predict, which a standard error needs."""


_LARGEST_EXPONENT = 700.0
"""Beyond this, exp overflows."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model on a text.

    Attributes:
        text: The text's name.
        n_scored: Number of tokens that were predicted.
        perplexity: exp of their mean negative log-probability.
        error: Its standard error: the standard error of that mean times the perplexity.
        kl_divergence: With a reference, the mean over positions of KL(reference || model) in nats.
        top1_agreement: With a reference, the share of positions where both have the same likeliest token.
        kl_error: Standard error of `kl_divergence`.

    Raises:
        InputError: The perplexity is not a finite number above 0.
    """

    text: str
    n_scored: int
    perplexity: float
    error: float
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    kl_error: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.perplexity < math.inf:
            raise InputError(f"a perplexity must be a finite number above 0, not {self.perplexity}")

    def loss(self, parent: Evaluation) -> float:
        """Return the increase of the perplexity over the parent's, as a share of the parent's."""
        return self.perplexity / parent.perplexity - 1


def evaluate(model: LoadedModel, text: Corpus, *, reference: LoadedModel | None = None) -> Evaluation:
    """Return the perplexity of a loaded model on a text, and its divergence from a reference.

    The protocol is llama-perplexity's: all documents' tokens are one stream, which is cut into windows of
    `n_ctx`. BOS replaces the first token of a window if the model expects it. The second half of each window
    is scored. A stream shorter than one window is one shorter window. The divergence is that of
    ``--kl-divergence``, except that the reference is not rounded to 16 bits. A live mask stays in force.

    Args:
        model: The model.
        text: The text.
        reference: The reference; None: no divergence.

    Raises:
        InputError: The text is too short, the model cannot predict, or the reference has another vocabulary.
        CoeError: The perplexity or the divergence is not finite.
    """
    if reference is not None and not _same_vocabulary(model, reference):
        raise InputError(f"{reference.moe.path}: has another vocabulary than {model.moe.path}")
    values = Values()
    for window, first in _scored_windows(model, text):
        if reference is None:
            values.add(log_probabilities(model, window, first))
        else:
            values.compare(compare(model, distributions(reference, window, first)))
    return values.result(model, text)


def evaluate_masks(
    model: LoadedModel,
    text: Corpus,
    masks: Sequence[ExpertMask],
    *,
    progress: Callable[[int], None] = lambda n: None,
) -> tuple[Evaluation, tuple[Evaluation, ...]]:
    """Return the evaluation of a loaded parent without a mask, and under each of several live masks.

    The protocol is that of `evaluate`; the reference of each mask is the unmasked parent. The distributions
    of one window are in memory at a time. Afterwards no mask is live.

    Args:
        model: The parent.
        text: The text.
        masks: The masks.
        progress: Called with the number of tokens after each run of a window.

    Raises:
        InputError: The text is too short, the model cannot predict, or a mask does not fit it.
        CoeError: A perplexity or a divergence is not finite.
    """
    of_parent, *of_masks = judge_masks(model, text, [None, *masks], reference=model, progress=progress)
    return of_parent, tuple(of_masks)


def judge_masks(
    model: LoadedModel,
    text: Corpus,
    masks: Sequence[ExpertMask | None],
    *,
    reference: LoadedModel | None,
    progress: Callable[[int], None] = lambda n: None,
    windows: Windows | None = None,
) -> list[Evaluation]:
    """Return the evaluation of a loaded model under each of several live masks, as `evaluate_masks` does.

    Args:
        model: The model.
        text: The text.
        masks: The masks; None: no mask.
        reference: The unmasked model that divergences are taken from: the model itself, which has none without a
            mask, or another one; None: there are no divergences.
        progress: Called with the number of tokens after each run of a window.
        windows: Where the results of each window are kept, for a run that may be interrupted; it may have those of
            the first windows already.

    Raises:
        InputError: The text is too short, the model cannot predict, a mask does not fit it, or the reference has
            another vocabulary.
        CoeError: A perplexity or a divergence is not finite.
    """
    if reference is not None and reference is not model and not _same_vocabulary(model, reference):
        raise InputError(f"{reference.moe.path}: has another vocabulary than {model.moe.path}")
    windows = windows or Windows(len(masks))
    try:
        for number, (window, first) in enumerate(_scored_windows(model, text)):
            if number < windows.n_done:
                progress(len(window) * (len(masks) + (reference not in (None, model))))
                continue
            windows.begin()
            if reference is model:
                model.clear_mask()
            expected = None if reference is None else distributions(reference, window, first)
            if reference is not None and reference is not model:
                progress(len(window))
            for mask, values in zip(masks, windows.of_masks, strict=True):
                if mask is None:
                    model.clear_mask()
                else:
                    model.apply(mask)
                if expected is None:
                    values.add(log_probabilities(model, window, first))
                elif mask is None and reference is model:
                    values.add(expected.log_probabilities)
                else:
                    values.compare(compare(model, expected))
                progress(len(window))
            windows.end()
    finally:
        model.clear_mask()
    return [values.result(model, text) for values in windows.of_masks]


def check_text(model: LoadedModel, text: Corpus) -> None:
    """Check that a model can be evaluated on a text.

    Raises:
        InputError: It cannot.
    """
    next(_scored_windows(model, text))


def count_tokens(model: LoadedModel, text: Corpus) -> int:
    """Return the number of tokens that one evaluation of a text runs."""
    return sum(len(window) for window, _ in _scored_windows(model, text))


class Values:
    """What one model under one mask predicted at the scored positions of a text."""

    def __init__(self) -> None:
        self.log_probabilities: list[NDArray[np.float64]] = []
        self.divergences: list[NDArray[np.float64]] = []
        self.agreements: list[NDArray[np.bool_]] = []

    def add(self, log_probabilities: NDArray[np.float64]) -> None:
        """Add the log-probabilities of a window's scored tokens, [position]."""
        self.log_probabilities.append(log_probabilities)

    def compare(self, found: Comparison) -> None:
        """Add a window with its comparison to the reference."""
        self.add(found.log_probabilities)
        self.divergences.append(found.divergences)
        self.agreements.append(found.same_top)

    def cut(self, n_windows: int) -> None:
        """Forget the windows from this number on."""
        for values in (self.log_probabilities, self.divergences, self.agreements):
            del values[n_windows:]

    def result(self, model: LoadedModel, text: Corpus) -> Evaluation:
        """Return the evaluation of all windows."""
        values = np.concatenate(self.log_probabilities)
        if not np.isfinite(values).all() or -values.mean() > _LARGEST_EXPONENT:
            raise CoeError(f"{model.moe.path}: has no finite perplexity on {text.name}; it is damaged")
        perplexity = math.exp(-values.mean())
        error = perplexity * _error_of_mean(values)
        if not self.divergences:
            return Evaluation(text=text.name, n_scored=len(values), perplexity=perplexity, error=error)
        divergences = np.concatenate(self.divergences)
        if not np.isfinite(divergences).all():
            raise CoeError(
                f"{model.moe.path}: gives probability 0 to tokens of {text.name} that the reference "
                "expects, so there is no finite divergence"
            )
        agreement = float(np.concatenate(self.agreements).mean())
        kl, kl_error = float(divergences.mean()), _error_of_mean(divergences)
        return Evaluation(
            text=text.name,
            n_scored=len(values),
            perplexity=perplexity,
            error=error,
            kl_divergence=kl,
            top1_agreement=agreement,
            kl_error=kl_error,
        )


class Windows:
    """The results of a text's windows, for each of several masks.

    Attributes:
        n_done: Number of windows that have been run under all masks.
        of_masks: The values for each mask.
    """

    def __init__(self, n_masks: int, *, at_end: Callable[[], None] = lambda: None) -> None:
        """Make it for a number of masks, without a window.

        Args:
            n_masks: Number of masks.
            at_end: Called after each window.
        """
        self.n_done = 0
        self.of_masks = [Values() for _ in range(n_masks)]
        self._at_end = at_end

    def begin(self) -> None:
        """Begin the next window. What an interrupted one has left is forgotten."""
        for values in self.of_masks:
            values.cut(self.n_done)

    def end(self) -> None:
        """Take note that the window has been run under all masks."""
        self.n_done += 1
        self._at_end()


def _error_of_mean(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values))


def _same_vocabulary(model: LoadedModel, reference: LoadedModel) -> bool:
    """Return whether two models have equally many tokens, with the same texts if both have them."""
    if model.n_vocab != reference.n_vocab:
        return False
    texts = [loaded.moe.vocabulary_bytes for loaded in (model, reference)]
    return texts[0] == texts[1] or not all(texts)


def _scored_windows(model: LoadedModel, text: Corpus) -> Iterator[tuple[Tokens, int]]:
    """Yield the windows of a text, each with the index of its first scored token."""
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
