"""Count what a corpus contains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coe_native.corpus.batching import Tokenizer, token_parts
from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, pieces_of, text_digest
from coe_native.corpus.near_duplicates import NearDuplicates


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
        compared: Documents that were looked at for that. There is a limit: see `NearDuplicates`.
        with_special: Texts that hold special tokens of the tokenizer, which are read as ordinary characters; None
            without a tokenizer.
    """

    name: str
    documents: int
    characters: int
    tokens: int | None
    duplicates: int
    near_duplicates: int
    compared: int
    with_special: int | None = None


def stats(corpora: Sequence[Corpus], model: Tokenizer | None = None, *, threshold: float = 0.8) -> list[Stats]:
    """Count what each corpus contains, or each stratum if documents have labels.

    Takes about 100 bytes of memory for each document, to tell duplicates.

    Args:
        corpora: The corpora. Duplicates are found across all of them.
        model: A tokenizer; None: tokens are not counted.
        threshold: The Jaccard index from which documents count as near duplicates.

    Raises:
        InputError: The threshold is out of range, or a document cannot be tokenised.
    """
    near = NearDuplicates(threshold)
    seen: set[bytes] = set()
    counts: dict[str, Counter[str]] = {}
    named = ((document.label or corpus.name, document) for corpus in corpora for document in corpus.documents)
    for number, (name, document) in enumerate(named):
        of_source = counts.setdefault(name, Counter())
        n_compared = near.n_compared
        has_twin = near.twin_of(number, document) is not None
        digest = text_digest(document)
        of_source["documents"] += 1
        of_source["characters"] += sum(map(len, pieces_of(document)))
        if model is not None:
            n_tokens = _n_tokens(document, model)
            of_source["tokens"] += n_tokens
            of_source["with_special"] += n_tokens != _n_tokens(replace(document, parse_special=True), model)
        of_source["compared"] += near.n_compared - n_compared
        of_source["duplicates"] += digest in seen
        of_source["near_duplicates"] += digest not in seen and has_twin
        seen.add(digest)
    return [
        Stats(
            name=name,
            documents=of_source["documents"],
            characters=of_source["characters"],
            tokens=None if model is None else of_source["tokens"],
            duplicates=of_source["duplicates"],
            near_duplicates=of_source["near_duplicates"],
            compared=of_source["compared"],
            with_special=None if model is None else of_source["with_special"],
        )
        for name, of_source in counts.items()
    ]


def _n_tokens(document: Document, model: Tokenizer) -> int:
    return sum(map(len, token_parts(document, model)))
