"""Random texts."""

from __future__ import annotations

import random

WORDS = [f"word{i}" for i in range(5000)]


def random_text(seed: int, n_words: int = 120) -> str:
    """Return a text of random words."""
    return " ".join(random.Random(seed).choices(WORDS, k=n_words))


def change_words(original: str, n_words: int, seed: int = 0) -> str:
    """Replace that many consecutive words of a text."""
    words = original.split()
    at = random.Random(seed).randrange(len(words) - n_words)
    return " ".join([*words[:at], *(f"new{i}" for i in range(n_words)), *words[at + n_words :]])
