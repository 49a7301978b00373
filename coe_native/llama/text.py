"""The text side of a loaded model: its tokenizer and its chat template."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np

from coe_native._native import core
from coe_native.corpus.batching import Tokens
from coe_native.corpus.documents import Message
from coe_native.errors import InputError
from coe_native.llama.chat import ChatTemplate
from coe_native.llama.conversations import renderings, shows_contents, shows_tools
from coe_native.llama.deep_stack import with_stack_for
from coe_native.llama.errors import naming
from coe_native.llama.long_texts import tokenize_in_chunks
from coe_native.llama.thinking import open_block
from coe_native.model.header import ModelHeader

_LEAVES_OUT = "it leaves out messages or calls of tools"

_MOST_TOKENS = 1 << 22
"""Size of the largest vocabulary that is read; the largest known have about 2**18 tokens."""


class ModelText:
    """Tokenizes and renders conversations for one loaded model. `close` ends the chat template's process.

    Attributes:
        n_vocab: Size of the vocabulary.
        rendered_plainly: Why conversations were rendered in a plainer way: what the template refused.
    """

    def __init__(self, header: ModelHeader, session: Callable[[], core.Session], date: str) -> None:
        """Begin without a chat template's process.

        Args:
            header: The model's header.
            session: Returns its session.
            date: Today's date for chat templates that print it, YYYY-MM-DD.
        """
        self._date = date
        self._header = header
        self._session_of = session
        self.n_vocab = session().n_vocab
        self.rendered_plainly: set[str] = set()

    @property
    def _session(self) -> core.Session:
        return self._session_of()

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Return the tokens of a text, int32 [n_tokens], with BOS and EOS if the model expects them.

        Args:
            text: The text.
            parse_special: Whether special tokens are parsed out of the text.

        Raises:
            InputError: The model has no tokenizer, or its tokenizer refuses the text.
        """
        return np.concatenate(list(self._with_ends([self._tokens(text, parse_special)])))

    def tokenize_long(self, pieces: Iterable[str], *, parse_special: bool = False) -> Iterator[Tokens]:
        """Yield the tokens of a text that is read in pieces, part by part. Together they are those of `tokenize`.

        Args:
            pieces: The text.
            parse_special: Whether special tokens are parsed out of the text.

        Raises:
            InputError: As `tokenize`.
        """
        yield from self._with_ends(tokenize_in_chunks(pieces, lambda text: self._tokens(text, parse_special)))

    def _tokens(self, text: str, parse_special: bool) -> Tokens:
        session = self._session
        if not session.has_tokenizer:
            raise InputError(
                f"{self._header.path}: has no tokenizer; give token ids (.npy, or .jsonl with tokens)"
            )
        data = text.encode("utf-8")
        with naming(self._header.path):
            return with_stack_for(data, lambda: session.tokenize(data, parse_special))

    def _with_ends(self, parts: Iterable[Tokens]) -> Iterator[Tokens]:
        """Yield the tokens of a text with BOS and EOS, if the model expects them."""
        bos, eos = self._session.bos_token, self._session.eos_token
        for number, part in enumerate(parts):
            # A chat template may have written BOS already.
            if number == 0 and bos >= 0 and (len(part) == 0 or part[0] != bos):
                yield np.array([bos], np.int32)
            yield part
        if eos >= 0:
            yield np.array([eos], np.int32)

    @property
    def bos_token(self) -> int | None:
        """Return the token that the model expects at the start of a text, or None."""
        bos = self._session.bos_token
        return bos if bos >= 0 else None

    def token_text(self, token: int) -> bytes:
        """Return the bytes of a token, which may be part of a character. A control token has none."""
        with naming(self._header.path):
            return self._session.token_text(token)

    def is_end(self, token: int) -> bool:
        """Return whether a token ends a text or a turn."""
        return self._session.ends(token)

    @property
    def has_chat_template(self) -> bool:
        """Return whether the model's file has a chat template."""
        return bool(self._session.chat_template)

    @property
    def printed_date(self) -> str:
        """Return the date that the chat template prints in conversations, YYYY-MM-DD; empty if it prints none."""
        return self._date if b"strftime_now" in self._session.chat_template else ""

    def render_chat(
        self, messages: tuple[Message, ...], tools: str = "", *, reply: bool = False, thinking: bool = False
    ) -> str:
        """Return a conversation as text, by the model's own chat template.

        What the template refuses, such as a system's message or tools, is rendered in a plainer way.

        Args:
            messages: The conversation.
            tools: The tools that it may call, as a JSON list; empty: none.
            reply: End with the beginning of the model's answer.
            thinking: Let the model think before it answers; without, its thinking block is closed.

        Raises:
            InputError: The model has no template, or the template refuses the conversation.
        """
        template = self._chat_template
        refused: InputError | None = None
        is_first = True
        for turns, listed in renderings(messages, tools):
            try:
                text = template.render(turns, listed, reply=reply, thinking=thinking)
            except InputError as error:
                refused, is_first = refused or error, False
                continue
            if shows_tools(text, turns, listed) and shows_contents(text, turns):
                if not is_first and not reply:
                    self.rendered_plainly.add(str(refused or _LEAVES_OUT))
                return text
            is_first = False
        reason = refused or _LEAVES_OUT
        raise InputError(f"{self._header.path}: its chat template refused a conversation ({reason})") from refused

    @property
    def thinks(self) -> str:
        """Return the thinking block that answers begin with and that cannot be closed; empty: none.

        Raises:
            InputError: The model has no template.
        """
        return open_block(self.render_chat((Message("user", "Hello"),), reply=True))

    @property
    def reply_prefill(self) -> str:
        """Return what a prompt for a raw API must end with so that the model answers without thinking.

        Raises:
            InputError: The model has no template.
        """
        question = (Message("user", "Hello"),)
        asked, answered = (self.render_chat(question, reply=reply) for reply in (False, True))
        return answered[len(asked) :] if answered.startswith(asked) else answered.rpartition("Hello")[2]

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        # Kept, because making it reads the whole vocabulary.
        template = self._session.chat_template.decode(errors="replace")
        if not template:
            raise InputError(f"{self._header.path}: has no chat template; give texts instead of messages")
        tokens = self._header.files[0].get("tokenizer.ggml.tokens", [], most=_MOST_TOKENS)

        def token_text(key: str) -> str:
            index = self._header.metadata(f"tokenizer.ggml.{key}_token_id")
            return str(tokens[index]) if isinstance(index, int) and index < len(tokens) else ""

        return ChatTemplate(template, bos=token_text("bos"), eos=token_text("eos"), date=self._date)

    def close(self) -> None:
        """End the chat template's process, if it was started."""
        with contextlib.suppress(KeyError):
            self.__dict__.pop("_chat_template").close()
