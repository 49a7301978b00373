"""Tokenise texts that are too long to hold in memory, with the tokens that the whole text has.

A tokenizer looks at what is around each place, but not far. So a text can be cut where the tokens of what follows
are the same without what comes before. Such places are found by trying.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from coe_native.corpus.batching import Tokens

CHUNK = 1 << 19
"""Characters that are tokenised at once. Tokenizers take about 50 bytes for each."""

_AFTER = 1 << 13
"""Fewest characters behind a cut for which tokens are compared."""

_TRIED = 16
"""Places of each kind that are tried."""

_PLACES = (
    re.compile(r"\n(?=\S)"),
    # Some tokenizers put a blank before a text: it then stands for the one that is cut off.
    re.compile(r"(?<=\S) (?=\S)"),
    re.compile(r"(?<=\S)(?= \S)"),
    re.compile(r"(?<=[.,;:!?。，、；：！？])"),
    # Not within a repeated character, whose tokens can depend on how often it comes.
    re.compile(r"(?<=(.))(?!\1|\Z)", re.DOTALL),
)
"""Places where a text can be cut, the best first. What follows the match is tokenised next."""

_OVERLAPS = ((0, 0), (1, 1), (1, 2))
"""Characters before a cut that are tokenised again, and the tokens that these then have.

A blank that a tokenizer puts before a text then comes before these characters.
"""


def tokenize_in_chunks(pieces: Iterable[str], tokenize: Callable[[str], Tokens]) -> Iterator[Tokens]:
    """Yield the tokens of a text in parts.

    Args:
        pieces: The text.
        tokenize: Returns the tokens of a text, int32 [n_tokens], without BOS and EOS.
    """
    text, n_known, enough = "", 0, CHUNK + 2 * _AFTER
    for piece in pieces:
        text += piece
        while len(text) >= enough:
            cut = _cut(text[:enough], tokenize)
            if cut is None:  # a longer text may have a place
                enough *= 2
                continue
            yield cut.tokens[n_known:]
            text, n_known, enough = text[cut.at :], cut.n_known, CHUNK + 2 * _AFTER
    yield tokenize(text)[n_known:]


class _Cut(NamedTuple):
    """A place where a text is cut.

    Attributes:
        tokens: The tokens before it.
        at: The character from which the text is tokenised next.
        n_known: How many of the tokens from there on are among `tokens`.
    """

    tokens: Tokens
    at: int
    n_known: int


def _cut(text: str, tokenize: Callable[[str], Tokens]) -> _Cut | None:
    """Return where a text can be cut near its end; None: nowhere."""
    tokens = tokenize(text)
    for place in _PLACES:
        found = place.finditer(text, len(text) - 2 * _AFTER, len(text) - _AFTER)
        for match, (overlap, n_known) in itertools.product(itertools.islice(found, _TRIED), _OVERLAPS):
            at = match.end() - overlap
            rest = tokenize(text[at:])[n_known:]
            n_before = len(tokens) - len(rest)
            if 0 < n_before < len(tokens) and (tokens[n_before:] == rest).all():
                return _Cut(tokens[:n_before], at, n_known)
    return None
