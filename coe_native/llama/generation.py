"""Text that a loaded model writes."""

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
    """How tokens are drawn. The temperature and the penalty are those of the published specialists; `top_k` and
    `top_p` are llama.cpp's own. A temperature of 0 takes the likeliest token. The same `seed` draws the same."""

    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.0
    repeat_penalty: float = 1.05
    repeat_last_n: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for holds, what in (
            (0 <= self.temperature <= 100, f"a temperature is from 0 to 100, not {self.temperature}"),
            (0 < self.repeat_penalty <= 100, f"a repeat penalty is above 0, not {self.repeat_penalty}"),
            (0 < self.top_p <= 1, f"top-p is above 0 and up to 1, not {self.top_p}"),
            (0 <= self.min_p < 1, f"min-p is from 0 and below 1, not {self.min_p}"),
            (self.top_k >= 0, f"top-k is not negative, as {self.top_k}"),
            (self.repeat_last_n >= 0, f"a number of tokens is not negative, as {self.repeat_last_n}"),
            (0 <= self.seed < 2**32, f"a seed is from 0 to 4294967295, not {self.seed}"),
        ):
            if not holds:
                raise InputError(what)


@dataclass(frozen=True)
class Generation:
    """What was written, in how many tokens, and why it ended: ``end`` of the turn, ``stop`` sequence (which is
    left out), or ``length``."""

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
    """What a loaded model writes after a prompt, live mask and all. Ends with the model's turn, before the first
    of the `stop` sequences, after `max_tokens`, or where the context is full.

    Raises InputError for a prompt that does not fit into the context, and for a model that does not predict.
    """
    if not model.predicts:
        raise InputError(f"{model.moe.path}: is an encoder or a diffusion model, which does not continue a text")
    if "" in stop:
        raise InputError("a stop sequence has a sign at least; nothing ends before anything")
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
        # A stop sequence may begin in what was there.
        found = [at for sequence in stop if (at := text.find(sequence, max(0, before - len(sequence) + 1))) >= 0]
        if found:
            return Generation(text[: min(found)], n_tokens, "stop")
        model.decode_next(token, position)
    return Generation(text + decoder.decode(b"", final=True), n_tokens, "length")
