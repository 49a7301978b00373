"""What a corpus is made of, and smaller ones from it: by strata, without what is there twice."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coe_native.corpus.batching import Tokenizer, tokenize
from coe_native.corpus.documents import Corpus, Document, Message
from coe_native.errors import InputError

SHINGLE = 5
"""Words of a shingle: short enough for a changed word to leave most as they are, long enough to be rare."""

Shingles = frozenset[str]


def text_of(document: Document) -> str:
    """A document as text; token ids as numbers."""
    content = document.content
    if isinstance(content, str):
        return content
    return "\n".join(part.content if isinstance(part, Message) else str(part) for part in content)


def shingles(text: str) -> Shingles:
    """All runs of SHINGLE words, of letters and digits in lower case, or of signs where there are few words; a
    shorter text is one."""
    words = re.findall(r"\w+", text.lower())
    if len(text) > 12 * len(words):  # signs, or a language that does not part its words
        words = [sign for sign in text.lower() if not sign.isspace()]
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def jaccard(first: Shingles, second: Shingles) -> float:
    return len(first & second) / len(first | second)


def near_duplicates(documents: Sequence[Document], threshold: float) -> list[int | None]:
    """For each document the index of an earlier one, itself no duplicate, whose shingles agree with its own by a
    Jaccard index of `threshold` or more; None for those without.

    Candidates are found by MinHash (Broder, 1997), which misses few, and checked exactly. A threshold of 1 finds
    documents of the same words alone.
    """
    import datasketch

    if not 0 < threshold <= 1:
        raise InputError(f"documents are alike by a share above 0 and up to 1, not {threshold}")
    # A little below, for the candidates' own estimate is not exact.
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
    """One source, or one stratum: its documents, characters, tokens (None without a tokenizer), and how many of
    its documents are there before, word for word or nearly."""

    name: str
    documents: int
    characters: int
    tokens: int | None
    duplicates: int
    near_duplicates: int


def stats(corpora: Sequence[Corpus], model: Tokenizer | None = None, *, threshold: float = 0.8) -> list[Stats]:
    """What each corpus, or each stratum where documents have labels, is made of. Duplicates are looked for among
    all documents."""
    named = [(document.label or corpus.name, document) for corpus in corpora for document in corpus.documents]
    twins = near_duplicates([document for _, document in named], threshold)
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    for (name, document), twin in zip(named, twins, strict=True):
        text = text_of(document)
        of_source = counts.setdefault(name, Counter())
        of_source["documents"] += 1
        of_source["characters"] += len(text)
        of_source["tokens"] += 0 if model is None else len(tokenize(document, model))
        of_source["duplicates"] += text in seen
        of_source["near_duplicates"] += text not in seen and twin is not None
        seen.add(text)
    return [
        Stats(
            name,
            of_source["documents"],
            of_source["characters"],
            None if model is None else of_source["tokens"],
            of_source["duplicates"],
            of_source["near_duplicates"],
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
    """Documents drawn at random from each stratum (documents of one label; without labels, of one corpus), the
    same with the same `seed`: at most `cap` of each, and `size` in all, shared out in proportion to what the
    strata have. With `threshold`, no two are near duplicates. In the order of strata, and in each of the corpora.

    Raises InputError where neither `size` nor `cap` says how many.
    """
    if size is None and cap is None:
        raise InputError("say how many documents: --size in all, or --cap of each stratum")
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
    there = {name: len(documents) for name, documents in strata.items()}
    most = there if cap is None else {name: min(n, cap) for name, n in there.items()}
    wanted = most if size is None else _shared_out(size, there, most)
    return [document for name, of_name in strata.items() for _, document in sorted(of_name[: wanted[name]])]


def _without_twins(
    strata: dict[str, list[tuple[int, Document]]], threshold: float
) -> dict[str, list[tuple[int, Document]]]:
    everything = [pair for documents in strata.values() for pair in documents]
    twins = iter(near_duplicates([document for _, document in everything], threshold))
    return {name: [pair for pair in documents if next(twins) is None] for name, documents in strata.items()}


def _shared_out(size: int, sizes: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """`size` in proportion to `sizes`, nobody more than `most`: what is left over goes to the others, and
    fractions to the largest remainders (Hamilton's method)."""
    shares = dict.fromkeys(sizes, 0)
    while (left := min(size, sum(most.values())) - sum(shares.values())) > 0:
        open_ = {name: n for name, n in sizes.items() if shares[name] < most[name]}
        total = sum(open_.values())
        exact = {name: left * n / total for name, n in open_.items()}
        given = {name: int(part) for name, part in exact.items()}
        rest = left - sum(given.values())
        for name in sorted(exact, key=lambda name: given[name] - exact[name])[:rest]:
            given[name] += 1
        for name, part in given.items():
            shares[name] += min(part, most[name] - shares[name])
    return shares


def lines(documents: Sequence[Document], column: str | None) -> Iterator[bytes]:
    """Documents as the lines of a .jsonl file, that is read as the same corpus, with where each came from."""
    for document in documents:
        content = document.content
        record: dict[str, Any]
        if isinstance(content, str):
            record = {"text": content}
        elif content and isinstance(content[0], Message):
            record = {"messages": [{"role": m.role, "content": m.content} for m in content]}
        else:
            record = {"tokens": list(content)}
        if column is not None and column not in record:
            record[column] = document.label
        yield json.dumps({"source": document.place} | record).encode() + b"\n"
