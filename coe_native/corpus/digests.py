"""Digests of documents: see docs/formats.md. They tell equal corpora from others, in profiles and checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from coe_native.corpus.documents import Document, Message
from coe_native.corpus.long_content import LongText, LongTokens


class CorpusDigest:
    """The SHA-256 digest of documents that are added one by one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"coe-native corpus 2\n")

    def add(self, document: Document) -> None:
        """Add the next document."""
        for part in _digested(document):
            self._digest.update(part)

    def hex(self) -> str:
        """Return the digest of all documents that were added."""
        return self._digest.hexdigest()


def digest_of(documents: Iterable[Document]) -> str:
    """Return the digest of documents (hex)."""
    digest = CorpusDigest()
    for document in documents:
        digest.add(document)
    return digest.hex()


def old_digest_of(documents: Iterable[Document]) -> str:
    """Return the digest that version 0.1.0 computed, to recognise its checkpoints."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.content
        if isinstance(content, LongText):
            content = "".join(content)
        elif isinstance(content, LongTokens):
            content = tuple(token for piece in content for token in piece.tolist())
        digest.update(repr(content).encode("utf-8", errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def _digested(document: Document) -> Iterator[bytes]:
    """Yield the bytes by which a content is digested: no two contents have the same."""
    content = document.content
    kind_of_text = b"special " if document.parse_special else b"text "
    if isinstance(content, str):
        yield kind_of_text + _sized(content)
    elif isinstance(content, LongText):
        yield kind_of_text + b"%d\n" % content.n_bytes
        yield from (piece.encode("utf-8", errors="surrogatepass") for piece in content)
        yield b"\n"
    elif isinstance(content, LongTokens):
        yield b"tokens %d\n" % len(content)
        for number, piece in enumerate(content):
            yield (b"," if number else b"") + ",".join(map(str, piece.tolist())).encode()
        yield b"\n"
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
