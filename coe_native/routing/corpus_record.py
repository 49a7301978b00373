"""CorpusRecord: what a profile says about a corpus that it has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CorpusRecord:
    """One corpus that a profile has seen, or some shards of it.

    Which documents are in a shard depends on all corpora of the run.

    Attributes:
        name: Its name.
        documents: Documents that were profiled.
        tokens: Tokens of these.
        sha256: The digest of all its documents (`Corpus.sha256`).
        shards: The shards that were profiled, ascending; (1,) of 1 for the whole corpus.
        n_shards: Number of shards of the run.
        run: Digest of all corpora of the run; empty for the whole corpus.
        columns: The columns that were read, of files with records.
        date: The date that the model's chat template may have printed in conversations; empty if it prints none.
    """

    name: str
    documents: int
    tokens: int
    sha256: str
    shards: tuple[int, ...] = (1,)
    n_shards: int = 1
    run: str = ""
    columns: tuple[str, ...] = ()
    date: str = ""

    def __post_init__(self) -> None:
        # A file's name need not be UTF-8, and JSON must be.
        object.__setattr__(self, "name", self.name.encode("utf-8", "replace").decode())
        columns = tuple(column.encode("utf-8", "replace").decode() for column in self.columns)
        object.__setattr__(self, "columns", columns)

    def as_json(self) -> dict[str, Any]:
        """Return what a profile's file records; the shards only where they are not the whole corpus."""
        fields: dict[str, Any] = {
            "name": self.name,
            "documents": self.documents,
            "tokens": self.tokens,
            "sha256": self.sha256,
        }
        if self.n_shards > 1:
            fields |= {"shards": list(self.shards), "n_shards": self.n_shards, "run": self.run}
        more = {"columns": list(self.columns), "date": self.date}
        return fields | {key: value for key, value in more.items() if value}

    @property
    def part(self) -> str:
        """Return which part of the corpus it is, as text."""
        return "all" if self.n_shards == 1 else f"shard {', '.join(map(str, self.shards))} of {self.n_shards}"

    @property
    def missing(self) -> tuple[int, ...]:
        """Return the shards that were not profiled."""
        return tuple(sorted(set(range(1, self.n_shards + 1)) - set(self.shards)))
