"""Documents: texts, conversations and token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from coe_native.corpus.long_content import LongText, LongTokens

_CHARACTERS_PER_TOKEN = 4
"""A rough average, to compare the sizes of texts and of token ids."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, to be rendered with the model's own chat template.

    Attributes:
        role: ``system``, ``user``, ``assistant``, ``tool`` or another name.
        content: Its text.
        fields: What else the template may print, such as ``tool_calls``, as a JSON object; empty: nothing.
    """

    role: str
    content: str
    fields: str = ""

    def as_turn(self) -> dict[str, Any]:
        """Return the message as chat templates take it."""
        return {"role": self.role, "content": self.content, **json.loads(self.fields or "{}")}


Content: TypeAlias = str | LongText | tuple[Message, ...] | tuple[int, ...] | LongTokens


@dataclass(frozen=True)
class Document:
    """A text, a conversation or token ids.

    Attributes:
        place: Where it came from, such as ``FILE:LINE``, for messages.
        content: The text, the messages, or the token ids.
        label: Its value in the column by which a corpus is divided into strata.
        tools: The tools that a conversation may call, as a JSON list; empty: none.
        parse_special: Whether special tokens are parsed out of a text, which a chat template has rendered already.
    """

    place: str
    content: Content
    label: str = ""
    tools: str = ""
    parse_special: bool = False

    @property
    def size(self) -> int:
        """Return its approximate length in characters."""
        if isinstance(self.content, str | LongText):
            return len(self.content)
        if isinstance(self.content, LongTokens):
            return _CHARACTERS_PER_TOKEN * len(self.content)
        return sum(
            len(part.content) + len(part.fields) if isinstance(part, Message) else _CHARACTERS_PER_TOKEN
            for part in self.content
        )


def text_of(document: Document) -> str:
    """Return a document as text. Messages and token ids have a line each."""
    return "".join(pieces_of(document))


def pieces_of(document: Document) -> Iterator[str]:
    """Yield the text of a document in pieces, of which a long document has many."""
    content = document.content
    if isinstance(content, str):
        yield content
    elif isinstance(content, LongText):
        yield from content
    elif isinstance(content, LongTokens):
        for number, piece in enumerate(content):
            yield ("\n" if number else "") + "\n".join(map(str, piece.tolist()))
    else:
        yield "\n".join(part.content if isinstance(part, Message) else str(part) for part in content)


def text_digest(document: Document) -> bytes:
    """Return a digest of a document as text, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces_of(document):
        digest.update(piece.encode("utf-8", "surrogatepass"))
    return digest.digest()
