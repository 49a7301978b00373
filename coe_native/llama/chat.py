"""Render conversations as text, by the chat template in a model's file.

A template is a program that came with the model. It may never end or allocate all memory, so it runs in a
helper process with limits on time and memory.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from coe_native.errors import InputError
from coe_native.helper_process import HelperError, HelperProcess, answer_questions
from coe_native.llama.thinking import OFF, ON, close_thinking

SECONDS = 5.0
"""Time limit for one conversation; templates take milliseconds."""


class ChatTemplate:
    """A template with the texts of the model's BOS and EOS. `close` ends its process."""

    def __init__(self, template: str, bos: str, eos: str, date: str = "") -> None:
        """Start the helper process.

        Args:
            template: The template.
            bos: The text of BOS.
            eos: The text of EOS.
            date: Today's date for `render`, if the template prints it, YYYY-MM-DD.
        """
        self._date = date
        self._source = {"template": template, "bos_token": bos, "eos_token": eos}
        self._helper = HelperProcess("from coe_native.llama.chat import serve; serve()")
        self._is_loaded = False
        self._failure = ""

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[Any] = (),
        *,
        reply: bool = False,
        thinking: bool = False,
    ) -> str:
        """Return a conversation as text.

        Args:
            messages: Its messages, each with ``role`` and ``content``, and what else the template may print.
            tools: The tools that it may call.
            reply: End with the beginning of the model's answer.
            thinking: Let the model think first; without, its thinking block is closed if there is one.

        Raises:
            InputError: The template refuses the conversation, or exceeded its limits for this or an earlier
                one.
        """
        if self._failure:
            raise InputError(self._failure)
        try:
            text = self.render_once(
                {
                    "messages": messages,
                    **({"tools": list(tools)} if tools else {}),
                    "add_generation_prompt": reply,
                    "today": self._date,
                    **(ON if thinking else OFF),
                }
            )
        except HelperError as error:
            self._failure = str(error)
            raise InputError(self._failure) from error
        return close_thinking(text) if reply and not thinking else text

    def render_once(self, variables: Mapping[str, Any]) -> str:
        """Return the template's text for some variables.

        Raises:
            InputError: The template refuses them.
            HelperError: It took too long or too much memory.
        """
        try:
            if not self._is_loaded:
                self._ask(self._source)
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
        """End the process."""
        self._helper.close()
        self._is_loaded = False


def serve() -> None:
    """Render conversations until standard input ends. Runs in the helper."""
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
        today = question.pop("today", None)
        if today is not None:
            formatter.strftime_now = datetime.datetime.fromisoformat(today).strftime
        text = formatter(**question).prompt
        given = len(str(question))
        if len(text) > (1 << 20) + 4 * given:
            raise ValueError(f"it turned {given} characters into {len(text)}")
        return {"text": text}

    answer_questions(answer, SECONDS)
