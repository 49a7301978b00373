"""Draw smaller corpora at random: by strata, without duplicates."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, Message, text_digest
from coe_native.corpus.long_content import LongText, LongTokens
from coe_native.corpus.near_duplicates import MOST_COMPARED, NearDuplicates
from coe_native.errors import InputError

MOST_CHARACTERS = 1 << 26
"""Characters, approximately, of the documents among which near duplicates are looked for."""


@dataclass(frozen=True)
class Sample:
    """Documents that were drawn.

    Attributes:
        documents: By strata, and in each in the order of the corpora.
        available: Documents from which they were drawn.
        compared: Documents among which near duplicates were looked for; others were checked for exact ones.
    """

    documents: list[Document]
    available: int
    compared: int


def sample(
    corpora: Sequence[Corpus],
    *,
    size: int | None = None,
    cap: int | None = None,
    seed: int = 0,
    threshold: float | None = 0.8,
) -> Sample:
    """Draw documents at random from each stratum: those with one label or, without labels, of one corpus.

    Takes about 100 bytes of memory for each document, and what is drawn.

    Args:
        corpora: The corpora.
        size: Documents in all, in proportion to the sizes of the strata; None: as many as `cap` allows.
        cap: Most documents of a stratum; None: no limit.
        seed: Seed of the generator. The same seed draws the same documents.
        threshold: The Jaccard index from which documents count as near duplicates, which are left out; None:
            duplicates stay. There is a limit to the documents that are compared (`NearDuplicates`); beyond it,
            only exact duplicates are left out.

    Raises:
        InputError: Neither `size` nor `cap` is given, or the threshold is out of range.
    """
    if size is None and cap is None:
        raise InputError("give the number of documents: --size in all, or --cap for each stratum")
    strata: dict[str, array[int]] = {}
    for number, (name, _) in enumerate(_named(corpora)):
        strata.setdefault(name, array("q")).append(number)
    generator = random.Random(seed)
    for numbers in strata.values():
        generator.shuffle(numbers)
    there = compared = sum(map(len, strata.values()))
    if threshold is not None:
        strata, compared = _without_twins(corpora, strata, threshold)
    available = {name: len(numbers) for name, numbers in strata.items()}
    most = available if cap is None else {name: min(n, cap) for name, n in available.items()}
    wanted = most if size is None else _shared_out(size, available, most)
    drawn = {name: sorted(numbers[: wanted[name]]) for name, numbers in strata.items()}
    documents = _documents(corpora, drawn)
    return Sample([documents[number] for numbers in drawn.values() for number in numbers], there, compared)


def _named(corpora: Sequence[Corpus]) -> Iterator[tuple[str, Document]]:
    """Yield all documents with their strata."""
    return ((document.label or corpus.name, document) for corpus in corpora for document in corpus.documents)


def _documents(corpora: Sequence[Corpus], drawn: Mapping[str, Sequence[int]]) -> dict[int, Document]:
    """Return some documents by their numbers."""
    numbers = frozenset(number for of_stratum in drawn.values() for number in of_stratum)
    return {number: document for number, (_, document) in enumerate(_named(corpora)) if number in numbers}


def _without_twins(
    corpora: Sequence[Corpus], strata: dict[str, array[int]], threshold: float
) -> tuple[dict[str, array[int]], int]:
    """Return the strata without duplicates, and how many documents were compared for near ones."""
    sizes = {name: len(numbers) for name, numbers in strata.items()}
    n_documents = sum(sizes.values())
    size = max(sum(corpus.size for corpus in corpora), 1)
    most = min(MOST_COMPARED, MOST_CHARACTERS * n_documents // size + 1)
    shares = _shared_out(most, sizes, sizes)
    first = {name: numbers[: shares[name]] for name, numbers in strata.items()}
    documents = _documents(corpora, first)
    near = NearDuplicates(threshold)
    in_order = [number for numbers in first.values() for number in numbers]
    twins = {number for number in in_order if near.twin_of(number, documents[number]) is not None}
    if near.n_compared < n_documents:
        twins |= _repeated(corpora, kept=set(in_order) - twins, removed=twins)
    left = {name: array("q", [n for n in numbers if n not in twins]) for name, numbers in strata.items()}
    return left, near.n_compared


def _repeated(corpora: Sequence[Corpus], kept: set[int], removed: set[int]) -> set[int]:
    """Return documents that equal others: none of `kept`, which are all different. Ignores those of `removed`."""
    digests: dict[bytes, int] = {}
    repeated = set()
    for number, (_, document) in enumerate(_named(corpora)):
        if number in removed:
            continue
        other = digests.setdefault(text_digest(document), number)
        if other != number:
            repeated.add(other if number in kept else number)
            digests[text_digest(document)] = number if number in kept else other
    return repeated


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
        if isinstance(content, str | LongText):
            record = {"text": content if isinstance(content, str) else "".join(content)}
        elif isinstance(content, LongTokens):
            record = {"tokens": [token for piece in content for token in piece.tolist()]}
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
