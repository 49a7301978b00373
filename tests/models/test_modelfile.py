"""How a model is used: prefills with the thinking closed, and Modelfiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.model_files import append_entry
from support.random_models import split_model

import coe_native as coe
from coe_native.corpus.documents import Message
from coe_native.model.gguf_file import encode_entry
from coe_native.recipes import demo
from coe_native.recipes.modelfile import DOMAINS, LENGTHS, Usage, usage

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# As the families' templates do it, in few words: Qwen 3, Gemma 4, DeepSeek 3.1, one that thinks whatever it is
# told, and one that never does.
TEMPLATES = {
    "enable_thinking": (
        TURNS + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "channel": (
        TURNS + "{% if add_generation_prompt %}<|turn>model\n"
        "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}{% endif %}",
        "<|turn>model\n<|channel>thought\n<channel|>",
    ),
    "thinking": (
        TURNS + "{% if add_generation_prompt %}<|Assistant|>"
        "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}",
        "<|Assistant|></think>",
    ),
    "always": (TURNS + "{% if add_generation_prompt %}<|A|><think>\n{% endif %}", "<|A|><think>\n</think>\n\n"),
    "never": (TURNS + "{% if add_generation_prompt %}<|A|>\n{% endif %}", "<|A|>\n"),
    "other end": (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|end|><|A|>{% else %}<eos>{% endif %}",
        "<|end|><|A|>",
    ),
}


def with_template(path: Path, template: str) -> Path:
    return append_entry(demo.MODEL, path, encode_entry("tokenizer.chat_template", template))


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_prefill_closes_the_thinking_block(tmp_path: Path, kind: str) -> None:
    template, prefill = TEMPLATES[kind]
    path = with_template(tmp_path / "m.gguf", template)
    with coe.Model(path, n_ctx=32, tokenizer_only=True) as model:
        assert model.text.reply_prefill == prefill
        question = (Message("user", "What is 2 + 2?"),)
        assert model.text.render_chat(question, reply=True).endswith(prefill)
        assert "assistant" not in model.text.render_chat(question), "a corpus is no question"
        made = usage(model)
    assert made.prefill == prefill
    assert f"# Raw APIs: end the prompt with {prefill!r}".replace("'", '"') in made.modelfile()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_modelfile_has_what_ollama_wants(domain: str) -> None:
    with coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as model:
        made = usage(model, domain=domain)
        text = made.modelfile()
    instructions = [line for line in text.splitlines() if not line.startswith("#")]
    assert instructions[0] == f"FROM {demo.MODEL.resolve()}"
    parameters = dict(re.findall(r"^PARAMETER (\w+) (\S+)$", text, re.MULTILINE))
    longest = coe.MoeModel(demo.MODEL).arch("context_length")
    n_ctx = min(LENGTHS["num_ctx"], longest)
    expected = {
        "temperature": 0.6,
        "repeat_penalty": 1.05,
        "num_ctx": n_ctx,
        "num_predict": min(LENGTHS["num_predict"], n_ctx),
    }
    assert {name: float(value) for name, value in parameters.items()} == expected
    assert instructions[-1] == f'SYSTEM """{DOMAINS[domain]}"""'
    assert "think=false" in text
    assert "safety" in text
    assert not made.prefill, "the demo's model has no chat template"


def test_unsupported_system_prompts_are_refused() -> None:
    with coe.Model(demo.MODEL, n_ctx=32, tokenizer_only=True) as model:
        with pytest.raises(coe.InputError, match=r"'cooking'.*general, code"):
            usage(model, domain="cooking")
        with pytest.raises(coe.InputError, match=r'"""|quotes'):
            usage(model, system='end it """ here')
        assert usage(model, system="Be brief.").system == "Be brief."


def test_a_split_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Ollama takes one file."""
    first = split_model(demo.MODEL, tmp_path, 2)[0]
    with coe.Model(first, n_ctx=32, tokenizer_only=True) as model, pytest.raises(coe.InputError, match="--merge"):
        usage(model)


def test_ollama_gets_the_sampling_settings_of_the_file(tmp_path: Path) -> None:
    """Not all of its versions read them there."""
    own = {"temp": 0.25, "penalty_repeat": 2, "top_k": 20, "top_p": 0.95, "min_p": 0.0, "penalty_last_n": -1}
    how = usage_with_settings(tmp_path, own)
    assert (how.parameters["temperature"], how.parameters["repeat_penalty"]) == (0.25, 2.0)
    lines = (
        *("temperature 0.25", "repeat_penalty 2", "top_k 20", "top_p 0.95", "min_p 0", "repeat_last_n -1"),
        "num_ctx 2048",
    )
    assert "".join(f"PARAMETER {line}\n" for line in lines) in how.modelfile()


def test_unusable_sampling_settings_of_a_file_are_left_out(tmp_path: Path) -> None:
    unusable = {"temp": "0.5", "penalty_repeat": 0.0, "top_k": 0.5, "top_p": float("nan"), "min_p": 2.0}
    how = usage_with_settings(tmp_path, unusable)
    assert list(how.parameters) == ["temperature", "repeat_penalty", "num_ctx", "num_predict"]
    assert (how.parameters["temperature"], how.parameters["repeat_penalty"]) == (0.6, 1.05)


def usage_with_settings(directory: Path, settings: dict[str, Any]) -> Usage:
    path = demo.MODEL
    for key, value in settings.items():
        entry = encode_entry(f"general.sampling.{key}", value, "I32")
        path = append_entry(path, directory / f"{key}.gguf", entry)
    with coe.Model(path, n_ctx=32, tokenizer_only=True) as model:
        return usage(model)
