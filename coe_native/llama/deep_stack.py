"""Run llama.cpp's tokenizers with a stack that is deep enough for the text.

Many of them split text with std::regex, which recurses for every character of a match: some 30,000 letters,
blanks or symbols in a row overflow a stack of 8 MB, and the process ends.
"""

from __future__ import annotations

import sys
import threading
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError

Result = TypeVar("Result")

_BYTES_OF_CHARACTER = 1024
"""Bytes of stack for one character; 430 were measured (libstdc++ 14, x86-64)."""

_BLOCK = 500
_SAFE = 4 * _BLOCK
"""Characters in a row for which any stack is deep enough."""

_MOST = 1 << 22
"""Most characters in a row for which a deeper stack is made."""

_LETTER, _DIGIT, _BLANK, _SYMBOL = 1, 2, 4, 8
_ALL = _LETTER | _DIGIT | _BLANK | _SYMBOL


@cache
def _classes() -> NDArray[np.uint8]:
    """Return the classes of each code point, as bits.

    Code points that tokenizers classify differently have all classes in question.
    """
    by_category = {"L": _LETTER, "M": _LETTER | _SYMBOL, "N": _DIGIT, "Z": _BLANK, "C": _BLANK | _SYMBOL}
    return np.array(
        [by_category.get(unicodedata.category(chr(point))[0], _SYMBOL) for point in range(sys.maxunicode + 1)],
        np.uint8,
    )


@cache
def _byte_classes() -> NDArray[np.uint8]:
    """Return the classes of each byte of UTF-8. Bytes beyond ASCII have all classes."""
    classes = np.full(256, _ALL, np.uint8)
    classes[:128] = [
        _LETTER if c.isalpha() else _DIGIT if c.isdigit() else _BLANK if c.isspace() else _SYMBOL
        for c in map(chr, range(128))
    ]
    return classes


def longest_run(text: bytes) -> int:
    """Return the length of the longest run of letters, digits, blanks or symbols, in characters.

    Args:
        text: The text in UTF-8.

    Returns:
        The length, or 0 if no run is longer than two blocks.
    """
    classes = _byte_classes()[np.frombuffer(text, np.uint8)]
    blocks = classes[: len(classes) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    if not np.bitwise_and.reduce(blocks, axis=1).any():  # a run of two blocks would fill one
        return 0
    if not text.isascii():
        points = np.frombuffer(text.decode("utf-8", "replace").encode("utf-32-le"), np.uint32)
        classes = _classes()[points]
    longest = 0
    for bit in (_LETTER, _DIGIT, _BLANK, _SYMBOL):
        others = np.flatnonzero((classes & bit) == 0)
        longest = max(longest, int(np.diff(others, prepend=-1, append=len(classes)).max()) - 1)
    return longest


def with_stack_for(text: bytes, tokenize: Callable[[], Result], *, most: int = _MOST) -> Result:
    """Return what `tokenize` returns, called in a thread with a deeper stack if the text needs one.

    Args:
        text: The text in UTF-8.
        tokenize: Tokenizes the text.
        most: Most characters in a row, counted twice.

    Raises:
        InputError: The text has more than half of `most` characters in a row, or the system refuses the
            stack.
    """
    # A match may add a run of blanks or line ends to another run.
    length = 2 * longest_run(text)
    if length <= _SAFE:
        return tokenize()
    if length > most:
        raise InputError(
            f"has {length // 2} letters, digits, blanks or symbols in a row, for which llama.cpp's tokenizer may "
            f"need {length * _BYTES_OF_CHARACTER >> 20} MB of stack; break such lines, or leave the text out"
        )
    found: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(tokenize())
        except BaseException as error:  # raised again in the caller's thread
            failed.append(error)

    thread = _thread_with_stack((_SAFE + length) * _BYTES_OF_CHARACTER, run)
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


_stack_size_lock = threading.Lock()


def _thread_with_stack(n_bytes: int, run: Callable[[], Any]) -> threading.Thread:
    """Start a thread. Until it has started, its stack size is the setting of the whole process."""
    thread = threading.Thread(target=run, name="coe-native tokenizer")
    with _stack_size_lock:
        before = threading.stack_size(max(n_bytes, 8 << 20))
        try:
            thread.start()
        except RuntimeError as error:
            raise InputError(
                f"needs {n_bytes >> 20} MB of stack for llama.cpp's tokenizer, but the system refused it; "
                "break the longest lines"
            ) from error
        finally:
            threading.stack_size(before)
    return thread
