"""Documents, and corpora made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    content: str | tuple[Message, ...] | tuple[int, ...]
    label: str = ""
    tools: str = ""
    parse_special: bool = False

    @property
    def size(self) -> int:
        """Return its approximate length in characters."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(
            len(part.content) + len(part.fields) if isinstance(part, Message) else _CHARACTERS_PER_TOKEN
            for part in self.content
        )


@dataclass(frozen=True)
class Corpus:
    """Named documents.

    Attributes:
        name: What messages and profiles call it; of a file, its path.
        documents: The documents, in order.
        skipped: Reasons why files of a directory were not read, each with the number of files.
        columns_read: Columns of structured files that were read.
        columns_ignored: Other columns, with the share of the text that they hold.
        bad: One line for each document that was left out because it could not be read.
    """

    name: str
    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, int], ...] = ()
    bad: tuple[str, ...] = ()
    columns_read: tuple[str, ...] = ()
    columns_ignored: tuple[tuple[str, float], ...] = ()

    @property
    def n_skipped(self) -> int:
        """Return the number of files of a directory that were not read."""
        return sum(number for _, number in self.skipped)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 digest (hex) of the documents' contents: see docs/formats.md.

        It tells equal corpora from others, in profiles and checkpoints.
        """
        digest = hashlib.sha256(b"coe-native corpus 2\n")
        for document in self.documents:
            for part in _digested(document):
                digest.update(part)
        return digest.hexdigest()

    @property
    def old_sha256(self) -> str:
        """Return the digest that version 0.1.0 computed, to recognise its checkpoints."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(repr(document.content).encode("utf-8", errors="surrogatepass") + b"\0")
        return digest.hexdigest()


def _digested(document: Document) -> Iterator[bytes]:
    """Yield the bytes by which a content is digested: no two contents have the same."""
    content = document.content
    if isinstance(content, str):
        yield (b"special " if document.parse_special else b"text ") + _sized(content)
    elif content and isinstance(content[0], Message):
        with_fields = bool(document.tools) or any(isinstance(part, Message) and part.fields for part in content)
        yield (
            b"conversation %d\n" % len(content) + _sized(document.tools)
            if with_fields
            else (b"messages %d\n" % len(content))
        )
        for message in content:
            assert isinstance(message, Message)
            yield _sized(message.role) + _sized(message.content)
            if with_fields:
                yield _sized(message.fields)
    else:
        yield b"tokens %d\n" % len(content)
        yield ",".join(map(str, content)).encode() + b"\n"


def _sized(text: str) -> bytes:
    data = text.encode("utf-8", errors="surrogatepass")
    return b"%d\n" % len(data) + data + b"\n"
