"""Generate text with a loaded model: several answers at once, in one context."""

from __future__ import annotations

import codecs
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from coe_native._native import core
from coe_native.corpus.batching import Tokens, batches
from coe_native.errors import InputError
from coe_native.llama.errors import naming
from coe_native.llama.loaded_model import LoadedModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    The default temperature and penalty are those of the published specialists, `top_k` and `top_p`
    llama.cpp's.

    Attributes:
        temperature: From 0, which takes the likeliest token, to 100.
        top_k: Number of tokens to draw from; 0: all.
        top_p: Probability of the tokens to draw from.
        min_p: Smallest probability of a token, as a share of the likeliest one's.
        repeat_penalty: Penalty for tokens that occurred before; 1: none.
        repeat_last_n: Number of last tokens that count as occurred.
        seed: Seed of the generator. The same seed draws the same tokens.

    Raises:
        InputError: A value is out of range.
    """

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.05
    repeat_last_n: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for holds, what in (
            (0 <= self.temperature <= 100, f"the temperature must be from 0 to 100, not {self.temperature}"),
            (
                0 < self.repeat_penalty <= 100,
                f"the repeat penalty must be above 0 and at most 100, not {self.repeat_penalty}",
            ),
            (0 < self.top_p <= 1, f"top-p must be above 0 and at most 1, not {self.top_p}"),
            (0 <= self.min_p < 1, f"min-p must be at least 0 and below 1, not {self.min_p}"),
            (self.top_k >= 0, f"top-k must be 0 or more, not {self.top_k}"),
            (
                self.repeat_last_n >= 0,
                f"the tokens of the repeat penalty must be 0 or more, not {self.repeat_last_n}",
            ),
            (0 <= self.seed < 2**32, f"the seed must be from 0 to 4294967295, not {self.seed}"),
        ):
            if not holds:
                raise InputError(what)


@dataclass(frozen=True)
class Prompt:
    """What a model continues.

    Attributes:
        tokens: The prompt, int32 [n_tokens].
        seed: Seed of the tokens that are drawn after it; None: that of `Sampling`.
    """

    tokens: Tokens
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """Generated text.

    Attributes:
        text: The text, without the stop sequence.
        n_tokens: Number of generated tokens.
        ended: Why it ended: ``end`` of the turn, ``stop`` sequence, ``length`` (as many tokens as were allowed),
            or ``context`` (it is full).
    """

    text: str
    n_tokens: int
    ended: str


def generate(
    model: LoadedModel,
    prompt: Tokens,
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 16384,
    stop: Sequence[str] = (),
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> Generation:
    """Generate text with a loaded model. A live mask stays in force.

    Args:
        model: The model.
        prompt: The prompt's tokens, int32 [n_tokens].
        sampling: How tokens are drawn; None: the defaults.
        max_tokens: Most tokens to generate. Generation also ends with the model's turn or a full context.
        stop: Texts before the first of which generation ends.
        progress: Called with the number of tokens after each.

    Raises:
        InputError: The prompt does not fit into the context, a stop sequence is empty, or the model cannot
            generate text.
    """
    prompts = [Prompt(prompt)]
    ((_, generation),) = generate_all(
        model, prompts, sampling=sampling, max_tokens=max_tokens, stop=stop, progress=progress
    )
    return generation


def generate_all(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 16384,
    stop: Sequence[str] = (),
    progress: Callable[[int], None] = lambda n_tokens: None,
) -> Iterator[tuple[int, Generation]]:
    """Continue several prompts, as many at once as the model holds sequences. A live mask stays in force.

    Each answer is the same whichever answers are written beside it and in whichever order, up to rounding: a
    matrix product of several rows adds in another order than that of one. The answers share the context; where
    it becomes full, the newest answer waits until another has ended, and goes on from its own tokens.

    Args:
        model: The model, loaded with ``n_sequences``.
        prompts: The prompts.
        sampling: How tokens are drawn; None: the defaults.
        max_tokens: Most tokens of an answer. An answer also ends with the model's turn, and when it fills the
            context alone.
        stop: Texts before the first of which an answer ends.
        progress: Called with the tokens generated in all answers so far.

    Yields:
        The index of a prompt and its answer, as soon as it has ended.

    Raises:
        InputError: A prompt does not fit into the context, a stop sequence is empty, or the model cannot
            generate text.
    """
    if not model.predicts:
        raise InputError(f"{model.moe.path}: is an encoder or a diffusion model, which does not continue a text")
    if "" in stop:
        raise InputError("stop sequences must not be empty")
    for prompt in prompts:
        if not 0 < len(prompt.tokens) < model.n_ctx:
            raise InputError(
                f"a prompt of {len(prompt.tokens)} tokens needs a longer context than {model.n_ctx} (--ctx)"
            )
    sampling = sampling or Sampling()
    waiting = deque(
        _Answer(
            index=index,
            tokens=prompt.tokens.tolist(),
            sampling=sampling if prompt.seed is None else dataclasses.replace(sampling, seed=prompt.seed),
            most=min(max_tokens, model.n_ctx - len(prompt.tokens)),
            is_cut=max_tokens > model.n_ctx - len(prompt.tokens),
            stop=stop,
        )
        for index, prompt in enumerate(prompts)
    )
    return _write_all(model, waiting, progress)


_RESERVE = 256
"""Tokens that each answer must still have room for when another begins, so that none begins only to wait."""


class _Answer:
    """An answer that is being written, as long as it takes to end.

    Attributes:
        index: The prompt's index.
        tokens: The tokens of the prompt and of the answer.
        sequence: Its sequence in the context.
    """

    def __init__(
        self, *, index: int, tokens: list[int], sampling: Sampling, most: int, is_cut: bool, stop: Sequence[str]
    ) -> None:
        self.index = index
        self.tokens = tokens
        self.sequence = -1
        self._sampling = sampling
        self._sampler: core.Sampler | None = None
        self._n_prompt = len(tokens)
        self._most = most
        self._is_cut = is_cut
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""

    @property
    def room(self) -> int:
        """Return the most tokens that it may still get."""
        return self._most - (len(self.tokens) - self._n_prompt)

    def sampler(self, n_vocab: int) -> core.Sampler:
        """Return its sampler. It keeps its state when the answer waits."""
        if self._sampler is None:
            self._sampler = core.Sampler(n_vocab, **asdict(self._sampling))
            self._sampler.accept(np.array(self.tokens, np.int32))
        return self._sampler

    def add(self, token: int, model: LoadedModel) -> Generation | None:
        """Add a token. Returns the whole answer if it ends with it."""
        if model.text.is_end(token):
            return self._finish("end")
        self.tokens.append(token)
        before = len(self._text)
        self._text += self._decoder.decode(model.text.token_text(token))
        # A stop sequence may begin in earlier tokens.
        places = (self._text.find(text, max(0, before - len(text) + 1)) for text in self._stop)
        found = [place for place in places if place >= 0]
        if found:
            return Generation(self._text[: min(found)], len(self.tokens) - self._n_prompt, "stop")
        return None if self.room else self._finish("context" if self._is_cut else "length")

    def _finish(self, why: str) -> Generation:
        text = self._text + self._decoder.decode(b"", final=True)
        return Generation(text, len(self.tokens) - self._n_prompt, why)


def _write_all(
    model: LoadedModel, waiting: deque[_Answer], progress: Callable[[int], None]
) -> Iterator[tuple[int, Generation]]:
    """Write answers side by side: each step runs the last token of each, and draws the next ones."""
    active: list[_Answer] = []
    n_tokens = 0
    model.session.reset()

    def drawn(answers: Sequence[_Answer], rows: Sequence[int]) -> Iterator[tuple[int, Generation]]:
        """Draw the next token of answers from output rows, and yield those that end."""
        nonlocal n_tokens
        for answer, token in zip(answers, _draw(model, answers, rows), strict=True):
            ended = answer.add(token, model)
            n_tokens += ended is None or ended.ended != "end"
            progress(n_tokens)
            if ended is not None:
                active.remove(answer)
                model.forget(answer.sequence)
                yield answer.index, ended

    while waiting or active:
        while waiting and _has_room(model, active, waiting[0]):
            answer = waiting.popleft()
            answer.sequence = min(set(range(model.n_sequences)) - {other.sequence for other in active})
            active.append(answer)
            _read(model, answer)
            yield from drawn([answer], [-1])
        while len(active) > 1 and sum(len(answer.tokens) for answer in active) > model.n_ctx:
            newest = active.pop()
            model.forget(newest.sequence)
            waiting.appendleft(newest)
        if active:
            model.extend(
                np.array([answer.tokens[-1] for answer in active], np.int32),
                np.array([len(answer.tokens) - 1 for answer in active], np.int32),
                np.array([answer.sequence for answer in active], np.int32),
            )
            yield from drawn(tuple(active), range(len(active)))


def _has_room(model: LoadedModel, active: Sequence[_Answer], answer: _Answer) -> bool:
    """Return whether an answer can be written beside others."""
    if not active:
        return True
    expected = sum(len(each.tokens) + min(each.room, _RESERVE) for each in (*active, answer))
    return len(active) < model.n_sequences and expected <= model.n_ctx


def _read(model: LoadedModel, answer: _Answer) -> None:
    """Run all tokens of an answer and of its prompt."""
    for batch in batches([np.array(answer.tokens, np.int32)], model.n_batch, 1):
        sequences = np.full(len(batch.tokens), answer.sequence, np.int32)
        model.extend(batch.tokens, batch.positions, sequences, len(batch.tokens) - 1)


def _draw(model: LoadedModel, answers: Sequence[_Answer], rows: Sequence[int]) -> list[int]:
    """Return the token that each answer draws from an output row of the last decode."""
    with naming(model.moe.path):
        samplers = [answer.sampler(model.n_vocab) for answer in answers]
        return core.Sampler.draw_all(model.session, samplers, list(rows))
