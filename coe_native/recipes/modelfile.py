"""Describe how to use a specialist: a Modelfile for Ollama, and the prefill for raw APIs."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from coe_native.errors import InputError, printable
from coe_native.llama.loaded_model import LoadedModel
from coe_native.model.header import ModelHeader
from coe_native.model.sampler_defaults import sampler_defaults_of
from coe_native.surgery.notice import safety_notice

LENGTHS = {"num_ctx": 8192, "num_predict": 16384}
"""Context and new tokens with which the published specialists were judged. The context limits the other."""

DOMAINS = {
    "general": "You are a helpful assistant. Answer directly and precisely. Say so when you do not know.",
    "code": (
        "You are an experienced software engineer. Answer with complete, working code and only the words that it "
        "needs. Keep to the language, style and names that you are shown."
    ),
    "python": (
        "You are an experienced Python programmer. Answer with complete, working Python code and only the "
        "words that it needs. Prefer the standard library, and name what must be installed."
    ),
    "maths": (
        "You are a careful mathematician. Work in short, checked steps, and end with the result on a line of "
        "its own."
    ),
    "writing": ("You are a careful writer and editor. Keep the author's voice, be concise, and change no facts."),
    "law": (
        "You know the law well and explain it plainly. Name the jurisdiction and the rule that you rely on, "
        "and say where a lawyer must be asked."
    ),
    "medicine": (
        "You know medicine well and explain it plainly. Say how sure a finding is, and when a doctor must be seen."
    ),
}
"""System prompts, by domain."""

_OF_OLLAMA = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_last_n": "repeat_last_n"}
"""Ollama's names of other settings that a file may have under `general.sampling.`."""


@dataclass(frozen=True)
class Usage:
    """How a model is used.

    Attributes:
        path: Its file.
        parameters: Parameters for Ollama.
        system: The system prompt.
        prefill: What the prompt for a raw API must end with, so that the model answers without thinking;
            empty if it has no chat template, or one that opens a block of thinking that cannot be closed.
        open_block: That block.
        notice: What its file says about removed experts.
    """

    path: Path
    parameters: dict[str, float]
    system: str
    prefill: str
    open_block: str
    notice: str

    def modelfile(self) -> str:
        """Return the Modelfile for ``ollama create NAME -f Modelfile``."""
        notice = "".join(f"# {line}\n" for line in self.notice.splitlines())
        raw = f"# Raw APIs: end the prompt with {json.dumps(self.prefill)}\n" if self.prefill else ""
        parameters = "".join(f"PARAMETER {name} {value:.7g}\n" for name, value in self.parameters.items())
        return (
            f'{notice}# Thinking off: ollama run NAME --think=false, or "think": false in its API.\n{raw}'
            f'FROM {self.path}\n{parameters}SYSTEM """{self.system}"""\n'
        )


def usage(
    model: LoadedModel, *, domain: str = "general", system: str | None = None, may_be_split: bool = False
) -> Usage:
    """Return how to use a model, with the sampling settings in its file.

    Not all versions of Ollama read them there. The published temperature and repeat penalty are used where the
    file has none. The context is not longer than the model was trained for.

    Args:
        model: The model. Its tokenizer is enough.
        domain: Whose system prompt to use: one of DOMAINS.
        system: Another system prompt.
        may_be_split: Also describe a model in several files, which Ollama does not take.

    Raises:
        InputError: There is no such domain, or a Modelfile cannot hold the prompt or the path.
    """
    if domain not in DOMAINS:
        raise InputError(f"there is no system prompt for {domain!r}; choose one of {', '.join(DOMAINS)}")
    text = DOMAINS[domain] if system is None else system
    if '"""' in text:
        raise InputError('a system prompt in a Modelfile cannot hold """')
    if len(model.moe.paths) > 1 and not may_be_split:
        raise InputError(
            f"{model.moe.path}: is split into {len(model.moe.paths)} files, and Ollama takes one; join them with "
            "llama-gguf-split --merge, or write the specialist without --split-max-size"
        )
    path = model.moe.path.resolve()
    if any(unicodedata.category(character) == "Cc" for character in str(path)):
        raise InputError(f"{path}: its name has control characters, which a Modelfile cannot hold; rename it")
    longest = model.moe.arch("context_length", LENGTHS["num_ctx"])
    lengths = dict(LENGTHS)
    if isinstance(longest, int) and 0 < longest < lengths["num_ctx"]:
        lengths["num_ctx"] = longest  # the model was not trained for more
    lengths["num_predict"] = min(lengths.values())
    sampling = sampler_defaults_of(model.moe)
    parameters: dict[str, float] = {
        "temperature": sampling.temperature or 0.0,
        "repeat_penalty": sampling.repeat_penalty or 1.0,
        **_other_sampling(model.moe),
        **lengths,
    }
    try:
        prefill, open_block = model.text.reply_prefill, model.text.thinks
    except InputError:
        prefill, open_block = "", ""
    notice = model.moe.files[0].get("coe.mask.notice")
    return Usage(
        path=path,
        parameters=parameters,
        system=text,
        prefill="" if open_block else prefill,
        open_block=open_block,
        notice=printable(notice) if isinstance(notice, str) else safety_notice(),
    )


def _other_sampling(moe: ModelHeader) -> dict[str, float]:
    """Return the sampling settings that the author has put into the file, by Ollama's names."""
    found = {ours: moe.metadata(f"general.sampling.{key}") for key, ours in _OF_OLLAMA.items()}
    return {name: value for name, value in found.items() if _is_setting(name, value)}


def _is_setting(name: str, value: object) -> bool:
    """Return whether Ollama takes a value."""
    if name in ("top_p", "min_p"):
        return isinstance(value, float) and 0 <= value <= 1
    least = -1 if name == "repeat_last_n" else 0
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 1 << 20
