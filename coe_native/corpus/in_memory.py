"""A corpus of what is in memory already: texts, conversations and token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, Message
from coe_native.corpus.readers.records import messages_of
from coe_native.errors import InputError

Given: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""A text, token ids, or the messages of a conversation, as OpenAI's API has them."""


def corpus_of(documents: Iterable[Given] | Sequence[Mapping[str, Any]], name: str = "documents") -> Corpus:
    """Return a corpus of texts, conversations and sequences of token ids. Empty ones are left out.

    Args:
        documents: Texts, conversations or token ids; or the messages of one conversation.
        name: What messages and profiles call the corpus.

    Raises:
        InputError: `documents` is one text instead of a list of texts, or something in it is none of these.
    """
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputError("documents must be a list of texts, not one text; read files with read_corpus")
    listed: list[Any] = list(documents)
    if listed and all(isinstance(document, Mapping) for document in listed):
        listed = [listed]
    contents = ((f"{name}[{index}]", _content(given, f"{name}[{index}]")) for index, given in enumerate(listed))
    return Corpus(name, tuple(Document(place, content) for place, content in contents if content))


def _content(given: Any, place: str) -> str | tuple[Message, ...] | tuple[int, ...]:
    if isinstance(given, str):
        return given
    if given is None or isinstance(given, Mapping | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{place}: is {type(given).__name__}; give a text, messages or token ids")
    parts = list(given)
    if parts and all(isinstance(part, Mapping) for part in parts):
        return messages_of(parts, place)
    try:
        return tuple(operator.index(part) for part in parts)
    except TypeError as error:
        raise InputError(f"{place}: has a token id that is not a whole number") from error
