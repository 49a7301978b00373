"""Bytes of corpus files as text."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

from coe_native.corpus.documents import Document
from coe_native.errors import InputError

Found = Document | InputError
"""What readers yield: a document, or what is wrong with it."""


def decoded(data: bytes, place: str) -> str:
    """Return UTF-8 bytes as text, without a byte order mark.

    Raises:
        InputError: They are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: is not UTF-8 text (byte {error.start}); convert it or leave it out") from error


def begins_like_text(start: bytes) -> bool:
    """Return whether bytes are UTF-8, except that the last character may be incomplete."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def found(place: str, content: Callable[[], Any]) -> Found:
    """Return the document with a content, or the error that computing the content raises."""
    try:
        return Document(place, content())
    except InputError as error:
        return error
