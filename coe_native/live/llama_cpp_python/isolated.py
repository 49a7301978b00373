"""Helper processes for the chat templates and grammars of llama-cpp-python's answers."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._internals as llama_internals
import llama_cpp.llama_chat_format as llama_chat
import llama_cpp.llama_cpp as llama_api
import numpy as np
from llama_cpp import llama_grammar

from coe_native.errors import InputError
from coe_native.helper_process import HelperError
from coe_native.live.grammar import CANDIDATE, GrammarHelper
from coe_native.live.llama_cpp_python.replacing import replaced
from coe_native.llama.chat import ChatTemplate


class _IsolatedFormatter:
    """A replacement of llama-cpp-python's Jinja2ChatFormatter, whose template runs in a helper process."""

    started: list[ChatTemplate]

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: list[int] | None = None,
    ) -> None:
        self._template = ChatTemplate(template, bos_token, eos_token)
        self.started.append(self._template)
        self._eos = eos_token
        self._reply = add_generation_prompt
        self._stop_ids = set(stop_token_ids or ())

    def __call__(self, **variables: Any) -> Any:
        try:
            prompt = self._template.render_once({"add_generation_prompt": self._reply, **variables})
        except HelperError as error:
            raise InputError(f"the model's chat template failed: {error}") from error
        except InputError as error:
            raise InputError(f"the model's chat template refused the messages: {error}") from error
        ends = [lambda tokens, _: tokens[-1] in self._stop_ids]
        return llama_chat.ChatFormatterResponse(
            prompt=prompt,
            stop=[self._eos],
            stopping_criteria=llama_cpp.StoppingCriteriaList(ends) if self._stop_ids else None,
            added_special=True,
        )

    def to_chat_handler(self) -> Any:
        return llama_chat.chat_formatter_to_chat_completion_handler(self)


@contextlib.contextmanager
def isolated_chat_templates() -> Iterator[None]:
    """Run the chat templates of models that are loaded in the block in helper processes."""
    started: list[ChatTemplate] = []
    isolated = type("IsolatedFormatter", (_IsolatedFormatter,), {"started": started})
    try:
        with replaced(llama_chat, "Jinja2ChatFormatter", isolated):
            yield
    finally:
        for template in started:
            template.close()


@contextlib.contextmanager
def isolated_grammars(model: Path) -> Iterator[None]:
    """Follow the grammars of all answers in a helper process while the block runs.

    Args:
        model: The model's GGUF file.
    """
    sample = llama_internals.LlamaSampler.sample

    def checked_sample(self: Any, *args: Any, **options: Any) -> Any:
        token = sample(self, *args, **options)
        followed: _FollowedGrammar | None = getattr(self, "coe_native_grammar", None)
        if followed is not None and followed.error is not None:
            raise followed.error
        return token

    with contextlib.closing(GrammarHelper(model)) as helper:

        def add_grammar(self: Any, _: Any, grammar: Any) -> None:
            if grammar._grammar.strip():
                self.coe_native_grammar = _FollowedGrammar(helper, grammar._grammar, grammar._root)
                sampler = self.coe_native_grammar.sampler
                llama_api.llama_sampler_chain_add(self.sampler, sampler.get_sampler())
                position = llama_api.llama_sampler_chain_n(self.sampler) - 1
                self.custom_samplers.append((position, sampler))

        with (
            replaced(llama_grammar, "json_schema_to_gbnf", lambda schema, *_: helper.from_schema(schema)),
            replaced(llama_internals.LlamaSampler, "add_grammar", add_grammar),
            replaced(llama_internals.LlamaSampler, "sample", checked_sample),
        ):
            yield


class _FollowedGrammar:
    """The grammar of one answer, as a sampler that llama.cpp calls.

    It must not raise; `error` has what went wrong.
    """

    def __init__(self, helper: GrammarHelper, grammar: str, root: str) -> None:
        self._helper = helper
        self._allowed = helper.begin(grammar, root)
        self.error: InputError | None = None
        self.sampler = llama_internals.CustomSampler(self._apply)
        # Kept, because llama.cpp calls it as long as the sampler lives.
        self._accept_callback = llama_api.llama_sampler_i_accept(self._accept)
        self.sampler.sampler.iface.contents.accept = self._accept_callback

    def _apply(self, array: Any) -> None:
        found = array.contents
        address = ctypes.cast(found.data, ctypes.c_void_p).value
        data = (ctypes.c_char * (found.size * CANDIDATE.itemsize)).from_address(address)
        candidates = np.frombuffer(data, CANDIDATE)
        candidates["logit"][~self._allowed[candidates["id"]]] = -np.inf

    def _accept(self, _: Any, token: int) -> None:
        if self.error is None:
            try:
                self._allowed = self._helper.accept(token)
            except InputError as error:
                self.error = error
