"""Conversations as text, by the chat template that a model carries.

A template is a program that came with the model. It may loop for ever or allocate all memory, so it runs in a
helper process with limits on both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from coe_native.errors import InputError
from coe_native.helper_process import HelperError, HelperProcess, answer_questions

SECONDS = 5.0
"""For one conversation; templates take milliseconds."""

_NO_THINKING = {"enable_thinking": False, "thinking": False}
"""What templates call it: the first Qwen, Gemma, GLM and others, the second DeepSeek."""

_OPEN = re.compile(r"<(think\b[^<>]*)>\s*\Z")


def close_thinking(prompt: str) -> str:
    """A prompt at whose end a template has opened a thinking block whatever it was told, with the block closed."""
    opened = _OPEN.search(prompt)
    return prompt if opened is None else f"{prompt.rstrip()}\n</{opened[1]}>\n\n"


class ChatTemplate:
    """A template with its own texts for BOS and EOS. `close` ends its process."""

    def __init__(self, template: str, bos: str, eos: str) -> None:
        self._made_of = {"template": template, "bos_token": bos, "eos_token": eos}
        self._helper = HelperProcess("from coe_native.llama.chat import serve; serve()")
        self._is_loaded = False
        self._given_up = ""

    def render(self, messages: list[dict[str, str]], *, reply: bool = False) -> str:
        """A conversation as text; with `reply`, up to where the answer to it begins, behind a closed thinking
        block where the template has one. Raises InputError where the template refuses it, or does not come to an
        end, and from then on."""
        if self._given_up:
            raise InputError(self._given_up)
        try:
            text = self.render_once({"messages": messages, "add_generation_prompt": reply, **_NO_THINKING})
        except HelperError as error:
            self._given_up = str(error)
            raise InputError(self._given_up) from error
        return close_thinking(text) if reply else text

    def render_once(self, variables: Mapping[str, Any]) -> str:
        """Return what the template makes of its variables.

        Raises:
            InputError: The template refuses them.
            HelperError: It took too long or too much memory.
        """
        try:
            if not self._is_loaded:
                self._ask(self._made_of)
                self._is_loaded = True
            return self._ask(dict(variables))
        except HelperError:
            self._is_loaded = False
            raise

    def _ask(self, question: dict[str, Any]) -> str:
        answer = self._helper.ask(question, SECONDS)
        if "error" in answer:
            raise InputError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """Ends the process."""
        self._helper.close()
        self._is_loaded = False


def serve() -> None:
    """What the template's process does."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = None

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal formatter
        if "template" in question:
            formatter = Jinja2ChatFormatter(**question)
            return {"text": ""}
        if formatter is None:
            raise ValueError("it has no template")
        formatter.add_generation_prompt = question.pop("add_generation_prompt")
        text = formatter(**question).prompt
        given = len(str(question))
        if len(text) > (1 << 20) + 4 * given:
            raise ValueError(f"it made {len(text)} characters of {given}")
        return {"text": text}

    answer_questions(answer, SECONDS)
