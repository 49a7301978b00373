"""Count what a corpus contains, and draw smaller ones from it: by strata, without duplicates."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coe_native.corpus.batching import Tokenizer, tokenize
from coe_native.corpus.documents import Corpus, Document, Message
from coe_native.errors import InputError

SHINGLE = 5
"""Words in a shingle. More would let one changed word change most shingles; fewer would make shingles common."""

Shingles = frozenset[str]


def text_of(document: Document) -> str:
    """Return a document as text. Messages and token ids have a line each."""
    content = document.content
    if isinstance(content, str):
        return content
    return "\n".join(part.content if isinstance(part, Message) else str(part) for part in content)


def shingles(text: str) -> Shingles:
    """Return all runs of SHINGLE words of a text, in lower case; a shorter text is one run.

    In a text with few words, each character counts as a word.
    """
    words = re.findall(r"\w+", text.lower())
    if len(text) > 12 * len(words):  # symbols, or a language without spaces between words
        words = [character for character in text.lower() if not character.isspace()]
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Return the Jaccard index of two texts: the shingles that they share, by the shingles of either."""
    return len(first & second) / len(first | second)


def near_duplicates(documents: Sequence[Document], threshold: float) -> list[int | None]:
    """Find near duplicates.

    Candidates are found by MinHash (Broder, 1997), which misses few, and are then checked exactly.

    Args:
        documents: The documents.
        threshold: The Jaccard index of their shingles from which documents count as near duplicates. With 1,
            only documents with the same words do.

    Returns:
        For each document the index of an earlier one that it duplicates, and that is not a duplicate itself;
        None if there is none.

    Raises:
        InputError: The threshold is out of range.
    """
    import datasketch

    if not 0 < threshold <= 1:
        raise InputError(f"the threshold of near duplicates must be above 0 and at most 1, not {threshold}")
    # A little lower, because the index only estimates how similar documents are.
    index = datasketch.MinHashLSH(threshold=min(max(threshold - 0.1, 0.05), 0.95), num_perm=128)
    kept: dict[int, Shingles] = {}
    found: list[int | None] = []
    for number, document in enumerate(documents):
        own = shingles(text_of(document))
        sketch = datasketch.MinHash(num_perm=128, seed=1)
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in own])
        twin = next((i for i in sorted(index.query(sketch)) if jaccard(kept[i], own) >= threshold), None)
        found.append(twin)
        if twin is None:
            kept[number] = own
            index.insert(number, sketch)
    return found


@dataclass(frozen=True)
class Stats:
    """What one corpus, or one stratum of it, contains.

    Attributes:
        name: Its name.
        documents: Number of documents.
        characters: Number of characters.
        tokens: Number of tokens; None without a tokenizer.
        duplicates: Documents that equal an earlier one.
        near_duplicates: Other documents that nearly equal an earlier one.
        with_special: Texts that hold special tokens of the tokenizer, which are read as ordinary characters; None
            without a tokenizer.
    """

    name: str
    documents: int
    characters: int
    tokens: int | None
    duplicates: int
    near_duplicates: int
    with_special: int | None = None


def stats(corpora: Sequence[Corpus], model: Tokenizer | None = None, *, threshold: float = 0.8) -> list[Stats]:
    """Count what each corpus contains, or each stratum if documents have labels.

    Args:
        corpora: The corpora. Duplicates are found across all of them.
        model: A tokenizer; None: tokens are not counted.
        threshold: The Jaccard index from which documents count as near duplicates.

    Raises:
        InputError: The threshold is out of range, or a document cannot be tokenised.
    """
    named = [(document.label or corpus.name, document) for corpus in corpora for document in corpus.documents]
    twins = near_duplicates([document for _, document in named], threshold)
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    for (name, document), twin in zip(named, twins, strict=True):
        text = text_of(document)
        of_source = counts.setdefault(name, Counter())
        of_source["documents"] += 1
        of_source["characters"] += len(text)
        if model is not None:
            n_tokens = len(tokenize(document, model))
            of_source["tokens"] += n_tokens
            of_source["with_special"] += n_tokens != len(tokenize(replace(document, parse_special=True), model))
        of_source["duplicates"] += text in seen
        of_source["near_duplicates"] += text not in seen and twin is not None
        seen.add(text)
    return [
        Stats(
            name=name,
            documents=of_source["documents"],
            characters=of_source["characters"],
            tokens=None if model is None else of_source["tokens"],
            duplicates=of_source["duplicates"],
            near_duplicates=of_source["near_duplicates"],
            with_special=None if model is None else of_source["with_special"],
        )
        for name, of_source in counts.items()
    ]


def sample(
    corpora: Sequence[Corpus],
    *,
    size: int | None = None,
    cap: int | None = None,
    seed: int = 0,
    threshold: float | None = 0.8,
) -> list[Document]:
    """Draw documents at random from each stratum: those with one label or, without labels, of one corpus.

    Args:
        corpora: The corpora.
        size: Documents in all, in proportion to the sizes of the strata; None: as many as `cap` allows.
        cap: Most documents of a stratum; None: no limit.
        seed: Seed of the generator. The same seed draws the same documents.
        threshold: The Jaccard index from which documents count as near duplicates, which are left out; None:
            duplicates stay.

    Returns:
        The documents, by strata, and in each in the order of the corpora.

    Raises:
        InputError: Neither `size` nor `cap` is given, or the threshold is out of range.
    """
    if size is None and cap is None:
        raise InputError("give the number of documents: --size in all, or --cap for each stratum")
    strata: dict[str, list[tuple[int, Document]]] = {}
    number = 0
    for corpus in corpora:
        for document in corpus.documents:
            strata.setdefault(document.label or corpus.name, []).append((number, document))
            number += 1
    generator = random.Random(seed)
    for documents in strata.values():
        generator.shuffle(documents)
    if threshold is not None:
        strata = _without_twins(strata, threshold)
    available = {name: len(documents) for name, documents in strata.items()}
    most = available if cap is None else {name: min(n, cap) for name, n in available.items()}
    wanted = most if size is None else _shared_out(size, available, most)
    return [document for name, of_name in strata.items() for _, document in sorted(of_name[: wanted[name]])]


def _without_twins(
    strata: dict[str, list[tuple[int, Document]]], threshold: float
) -> dict[str, list[tuple[int, Document]]]:
    everything = [pair for documents in strata.values() for pair in documents]
    twins = iter(near_duplicates([document for _, document in everything], threshold))
    return {name: [pair for pair in documents if next(twins) is None] for name, documents in strata.items()}


def _shared_out(size: int, sizes: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """Return how many documents each stratum gives, `size` in all, in proportion to `sizes`.

    None gives more than `most`; the others then give more. Fractions are rounded by the largest remainders
    (Hamilton's method).
    """
    shares = dict.fromkeys(sizes, 0)
    while (left := min(size, sum(most.values())) - sum(shares.values())) > 0:
        unfilled = {name: n for name, n in sizes.items() if shares[name] < most[name]}
        total = sum(unfilled.values())
        exact = {name: left * n / total for name, n in unfilled.items()}
        given = {name: int(part) for name, part in exact.items()}
        rest = left - sum(given.values())
        for name in sorted(exact, key=lambda name: given[name] - exact[name])[:rest]:
            given[name] += 1
        for name, part in given.items():
            shares[name] += min(part, most[name] - shares[name])
    return shares


def lines(documents: Sequence[Document], column: str | None) -> Iterator[bytes]:
    """Write documents as lines of a .jsonl file, which is read as the same corpus.

    Args:
        documents: The documents.
        column: The column for their labels; None: none.

    Yields:
        Each line. Its ``source`` says where the document came from.
    """
    for document in documents:
        content = document.content
        record: dict[str, Any]
        if isinstance(content, str):
            record = {"text": content}
        elif content and isinstance(content[0], Message):
            turns = [part for part in content if isinstance(part, Message)]
            record = {"messages": [turn.as_turn() for turn in turns]}
            if document.tools:
                record["tools"] = json.loads(document.tools)
        else:
            record = {"tokens": list(content)}
        if column is not None and column not in record:
            record[column] = document.label
        yield json.dumps({"source": document.place} | record).encode() + b"\n"
