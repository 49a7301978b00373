"""Bytes of corpus files as text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from coe_native.corpus.documents import Document
from coe_native.corpus.long_content import PIECE
from coe_native.errors import InputError

Found = Document | InputError
"""What readers yield: a document, or what is wrong with it."""

_COMMON = ("cp1252", "cp1251", "cp1250", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "koi8_r", "utf_16")
"""Encodings that are named as a guess."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotTextError(InputError):
    """A file that is not text in the encoding that was expected."""


def decoded(data: bytes, place: str, encoding: str | None = None) -> str:
    """Return bytes as text: UTF-8, or UTF-16 or UTF-32 with a byte order mark, unless an encoding is named.

    Raises:
        NotTextError: They are something else. Names the encoding that they look like.
    """
    return "".join(decoded_pieces(io.BytesIO(data), place, encoding))


def decoded_pieces(file: BinaryIO, place: str, encoding: str | None = None) -> Iterator[str]:
    """Yield the text of a file in pieces. Like `decoded`, but only a piece is in memory."""
    at, data = 0, file.read(PIECE)
    wanted = encoding_of(data, encoding)
    decoder = codecs.getincrementaldecoder(wanted)()
    while True:
        undecoded = decoder.getstate()[0]
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise NotTextError(f"{place}: {_not_text(error, at - len(undecoded), wanted)}") from error
        except UnicodeError as error:  # of UTF-16 without a byte order mark
            raise NotTextError(f"{place}: is not {wanted} text ({error}); name another with --encoding") from error
        if at == 0 and _has_many_controls(text):
            order = "le" if data[1::2].count(0) >= data[::2].count(0) else "be"
            raise NotTextError(
                f"{place}: is not text; if it is UTF-16 without a byte order mark, pass --encoding utf-16-{order}"
            )
        yield text
        if not data:
            return
        at, data = at + len(data), file.read(PIECE)


def _not_text(error: UnicodeDecodeError, at: int, encoding: str) -> str:
    import charset_normalizer

    around = error.object[max(0, error.start - 4096) : error.start + 4096]
    best = charset_normalizer.from_bytes(around, cp_isolation=list(_COMMON)).best()
    likely = "" if best is None else "cp1252 or cp1250" if best.encoding in ("cp1252", "cp1250") else best.encoding
    looks = f", it looks like {likely}" if likely else ""
    name = "UTF-8" if encoding == "utf-8-sig" else encoding
    return (
        f"is not {name} text (byte {at + error.start}){looks}; name its encoding with --encoding, or leave it out"
    )


def not_text(error: UnicodeError) -> str:
    """Return what is wrong with a file with records that is not text in the expected encoding."""
    name = error.encoding if isinstance(error, UnicodeDecodeError) else "text in that encoding:"
    what = f"is not {name} text" if isinstance(error, UnicodeDecodeError) else f"is not {name} {error}"
    return f"{what}; name its encoding with --encoding, such as cp1252"


def _has_many_controls(text: str) -> bool:
    """Return whether a text may be that of an encoding with two bytes for each character, read as one with one."""
    start = text[: 1 << 16]
    return sum(character < " " and character not in "\t\n\r\f\x1b" for character in start) * 20 > len(start)


def lines(stream: BinaryIO, encoding: str | None = None) -> Iterator[bytes]:
    """Yield the lines of a stream, recoded to UTF-8 if it is UTF-16 or `encoding` says so.

    Raises:
        UnicodeDecodeError: A line is not text in that encoding.
    """
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    wanted = encoding_of(buffered.peek(4)[:4], encoding)
    if codecs.lookup(wanted).name in ("utf-8", "utf-8-sig"):
        yield from buffered
    else:
        text = io.TextIOWrapper(buffered, wanted, newline="\n")
        try:
            for line in text:
                yield line.encode("utf-8")
        finally:
            text.detach()


def encoding_of(start: bytes, encoding: str | None = None) -> str:
    """Return the encoding of a text by its first bytes, unless one is named."""
    if encoding is not None:
        return encoding
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith(_UTF_16) else "utf-8-sig"


def as_text(file: BinaryIO, encoding: str | None = None, newline: str | None = None) -> io.TextIOWrapper:
    """Return a stream as text, by its first bytes unless an encoding is named. The caller detaches it."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)  # type: ignore[type-var]
    return io.TextIOWrapper(buffered, encoding_of(buffered.peek(4)[:4], encoding), newline=newline)


def can_be_decoded(start: bytes, encoding: str | None = None) -> bool:
    """Return whether bytes can be the beginning of a text, whose last character may be incomplete."""
    try:
        codecs.getincrementaldecoder(encoding_of(start, encoding))().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def begins_like_text(start: bytes, encoding: str | None = None) -> bool:
    """Return whether bytes can be decoded and have no NUL, which binary files have in their first bytes."""
    has_wide_characters = codecs.lookup(encoding_of(start, encoding)).name.startswith(("utf-16", "utf-32"))
    return can_be_decoded(start, encoding) and (has_wide_characters or b"\0" not in start)


def found(place: str, content: Callable[[], Any]) -> Found:
    """Return the document with a content, or the error that computing the content raises."""
    try:
        return Document(place, content())
    except InputError as error:
        return error
