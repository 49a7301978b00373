"""Generate text with a loaded model."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from coe_native._native import core
from coe_native.corpus.batching import Tokens, batches
from coe_native.errors import InputError
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
class Generation:
    """Generated text.

    Attributes:
        text: The text, without the stop sequence.
        n_tokens: Number of generated tokens.
        ended: Why it ended: ``end`` of the turn, ``stop`` sequence, or ``length``.
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
    if not model.predicts:
        raise InputError(f"{model.moe.path}: is an encoder or a diffusion model, which does not continue a text")
    if "" in stop:
        raise InputError("stop sequences must not be empty")
    if not 0 < len(prompt) < model.n_ctx:
        raise InputError(f"a prompt of {len(prompt)} tokens needs a longer context than {model.n_ctx} (--ctx)")
    sampler = core.Sampler(model.n_vocab, **asdict(sampling or Sampling()))
    sampler.accept(prompt)
    for batch in batches([prompt], model.n_batch, 1):
        model.decode(batch, len(batch.tokens) - 1)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, n_tokens = "", 0
    for position in range(len(prompt), min(model.n_ctx, len(prompt) + max_tokens)):
        token = model.draw(sampler)
        if model.text.is_end(token):
            return Generation(text + decoder.decode(b"", final=True), n_tokens, "end")
        n_tokens += 1
        progress(n_tokens)
        before = len(text)
        text += decoder.decode(model.text.token_text(token))
        # A stop sequence may begin in earlier tokens.
        found = [at for sequence in stop if (at := text.find(sequence, max(0, before - len(sequence) + 1))) >= 0]
        if found:
            return Generation(text[: min(found)], n_tokens, "stop")
        model.decode_next(token, position)
    return Generation(text + decoder.decode(b"", final=True), n_tokens, "length")
