"""Corpora: paths to documents, and these to bundles that are run together."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import random
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.parquet import ParquetFile
from coe_native.regular_file import open_regular
from coe_native.routing_profile import MOST_SHARDS

_TOKEN_LENGTH = 4
"""Characters of a token, about."""

BUNDLE_SIZE = 2**17
"""Characters of a bundle, at least: some 64 batches of 512 tokens, of which the last is not full."""

_MOST_ROWS = 1 << 20
"""Of an array of tokens: each takes some 300 bytes beside its tokens."""

_PROMPTS = ("prompt", "content", "instruction", "question")
_COMPLETIONS = ("completion", "answer", "solution")
_COLUMNS = ("text", "messages", "tokens", *_PROMPTS, *_COMPLETIONS)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, to be rendered with the model's own chat template."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """A text, a conversation, or ready token ids, and where it came from (for messages about it)."""

    place: str
    content: str | tuple[Message, ...] | tuple[int, ...]
    label: str = ""
    """What it says in the column that a corpus is divided by."""

    @property
    def size(self) -> int:
        """About how much text it is, in characters."""
        if isinstance(self.content, str):
            return len(self.content)
        return sum(len(part.content) if isinstance(part, Message) else _TOKEN_LENGTH for part in self.content)


@dataclass(frozen=True)
class Corpus:
    """Named documents. `sha256` is over their contents, so that equal corpora are recognised. `n_skipped`: files
    of a directory that were passed by; `bad`: what was wrong with documents that were left out."""

    name: str
    documents: tuple[Document, ...]
    n_skipped: int = 0
    bad: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(repr(document.content).encode("utf-8", errors="surrogatepass") + b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Columns:
    """Which columns of a record are read: that of the text, if it is named, and the one to divide by."""

    text: str | None = None
    label: str | None = None


def read_corpus(
    path: str | Path, field: str | None = None, *, label: str | None = None, skip_bad: bool = False
) -> Corpus:
    """All documents of a file, of a directory (its files in order of their names, but hidden ones and those that
    are no UTF-8 text), or of standard input (``-``, one text). `field` names the text column of ``.jsonl`` and
    ``.parquet`` files, `label` one that goes with each document. `skip_bad`: leaves out documents that can't be
    read.

    Raises InputError, naming the place, where something can't be read or there is no document.
    """
    skipped: list[Path] = []
    documents: list[Document] = []
    bad: list[str] = []
    for document in _read_stdin() if str(path) == "-" else _read_path(Path(path), Columns(field, label), skipped):
        if isinstance(document, Document):
            documents.append(document)
        elif skip_bad:
            bad.append(str(document))
        else:
            raise document
    documents = [document for document in documents if document.content]
    if not documents:
        links = sum(entry.is_symlink() for entry in skipped)
        why = f" ({links} links lead outside of it; name the files or their directory)" if links else ""
        raise InputError(bad[0] if bad else f"{path}: holds no text{why}")
    return Corpus(str(path), tuple(documents), len(skipped), tuple(bad))


def corpus_of(documents: Iterable[str | Sequence[int]], name: str = "documents") -> Corpus:
    """A corpus of texts and token-id sequences given in memory. Raises InputError for one text alone."""
    if isinstance(documents, str):
        raise InputError("documents must be a list of texts, not one text")
    made = []
    for i, document in enumerate(documents):
        content = document if isinstance(document, str) else tuple(int(token) for token in document)
        made.append(Document(f"{name}[{i}]", content))
    return Corpus(name, tuple(document for document in made if document.content))


Found = Document | InputError
"""A document, or what is wrong with it."""


def _found(place: str, content: Callable[[], Any]) -> Found:
    try:
        return Document(place, content())
    except InputError as error:
        return error


def _of_record(record: Callable[[], dict[str, Any]], columns: Columns, place: str) -> Found:
    try:
        read = record()
        content = _content(read, columns.text, place)
        return Document(place, content, "" if columns.label is None else _label(read, columns.label, place))
    except InputError as error:
        return error


def _read_path(path: Path, columns: Columns, skipped: list[Path]) -> Iterator[Found]:
    readers = {".jsonl": _read_jsonl, ".npy": _read_npy, ".parquet": _read_parquet}
    if path.is_dir():
        inside = path.resolve()
        for entry in sorted(_entries(path), key=lambda entry: entry.relative_to(path).as_posix()):
            hidden = any(part.startswith(".") for part in entry.relative_to(path).parts)
            try:
                if not entry.is_file():
                    continue
                # A link among text from elsewhere must not lead to files of the user.
                leads_outside = not entry.resolve().is_relative_to(inside)
            except OSError:  # a link to a name that is too long, for one
                skipped.append(entry)
                continue
            if hidden or leads_outside or not _looks_like_text(entry):
                skipped.append(entry)
            else:
                yield from _read_path(entry, columns, skipped)
        return
    try:
        yield from readers.get(path.suffix.lower(), _read_text)(path, columns)
    except OSError as error:
        yield InputError(f"{path}: cannot be read: {error.strerror or error}")


def _entries(path: Path) -> Iterator[Path]:
    """Yield what is in a directory and those below it, of any number of levels. Links to directories are yielded
    and not followed."""
    waiting = [path]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _looks_like_text(path: Path) -> bool:
    """Whether a file found in a directory is meant to be read: nobody has named it, so programs, pictures and
    archives among the texts are passed by."""
    if path.suffix.lower() in (".npy", ".parquet"):
        return True
    with open_regular(path) as file:
        start = file.read(8192)
    return _begins_like_text(start) and b"\0" not in start


def _begins_like_text(start: bytes) -> bool:
    """Whether it is UTF-8, but for a last character that may be cut in two."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: is not UTF-8 text (byte {error.start}); convert it or leave it out") from error


def _read_stdin() -> Iterator[Found]:
    yield _found("standard input", lambda: _decoded(sys.stdin.buffer.read(), "standard input"))


def _read_text(path: Path, columns: Columns) -> Iterator[Found]:  # noqa: ARG001
    with open_regular(path) as file:
        start = file.read(1 << 16)
        # Nobody should wait for a file of gigabytes to be read that was named by mistake.
        rest = file.read() if _begins_like_text(start) else b""
        yield _found(str(path), lambda: _decoded(start + rest, str(path)))


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Found]:
    with open_regular(path) as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if line.strip():
                yield _of_record(lambda line=line, place=place: _record(line, place), columns, place)  # type: ignore[misc]


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(_decoded(line, place))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: is no JSON object")
    return record


def _read_parquet(path: Path, columns: Columns) -> Iterator[Found]:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: reading parquet needs pyarrow: pip install pyarrow")
    with ParquetFile(path) as file:
        try:
            there = file.column_names()
            # Others may hold what Python has no values for.
            texts = [name for name in there if name in (_COLUMNS if columns.text is None else (columns.text,))]
            if not texts:
                yield _no_text(str(path), columns.text, there)
                return
            wanted = [name for name in there if name in texts or name == columns.label]
            for row, record in enumerate(file.records(wanted), 1):
                yield _of_record(lambda record=record: record, columns, f"{path}:{row}")  # type: ignore[misc]
        except InputError as error:
            yield InputError(f"{path}: cannot be read as Parquet ({error}); write it again")


def _read_npy(path: Path, columns: Columns) -> Iterator[Found]:  # noqa: ARG001
    try:
        array = _read_array(path)
    except InputError as error:
        yield error
        return
    for number, row in enumerate(np.atleast_2d(array)):
        yield Document(f"{path}[{number}]", tuple(row.tolist()))


def _read_array(path: Path) -> NDArray[Any]:
    """Unlike np.load it never unpickles, takes no archives, and believes no size that the file does not have."""
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about headers of old versions of Python
        try:
            version = np.lib.format.read_magic(file)
            header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, by_columns, dtype = header(file)
        except OSError:
            raise
        except Exception as error:  # the header is a Python literal, and parsing one fails in many ways
            raise InputError(f"{path}: is no array of token ids ({error}); write it with numpy.save") from error
        if len(shape) not in (1, 2) or dtype.kind not in "iu":
            raise InputError(
                f"{path}: is a {len(shape)}-D array of {dtype}; token ids are 1-D or 2-D integers: save them so"
            )
        if len(shape) == 2 and shape[0] > _MOST_ROWS:
            raise InputError(f"{path}: has {shape[0]} rows; {_MOST_ROWS} documents are the most: split it")
        n_bytes = math.prod(shape) * dtype.itemsize
        if min(shape) < 0 or n_bytes > os.fstat(file.fileno()).st_size - file.tell():
            raise InputError(f"{path}: ends before its last token; it is damaged or not complete")
        values = np.frombuffer(file.read(n_bytes), dtype)
    # Rows without tokens may be claimed by the billion.
    return values.reshape(shape, order="F" if by_columns else "C") if n_bytes else np.empty(0, dtype)


def _label(record: dict[str, Any], column: str, place: str) -> str:
    value = record.get(column)
    if not isinstance(value, str | int | float):
        there = ", ".join(reprlib.repr(name).strip("'") for name in list(record)[:20])
        raise InputError(f"{place}: has no text or number in column {column!r} to divide by (it has {there})")
    return str(value)


def _content(record: dict[str, Any], field: str | None, place: str) -> Any:
    """The content of one record: see the public interface for the order in which columns are looked for."""
    if field is not None:
        if not isinstance(record.get(field), str):
            raise _no_text(place, field, record)
        return record[field]
    if isinstance(record.get("text"), str):
        return record["text"]
    if isinstance(record.get("messages"), list):
        return _messages(record["messages"], place)
    tokens = record.get("tokens")
    if isinstance(tokens, list):
        return _token_ids(tokens, place)
    prompt = next((record[name] for name in _PROMPTS if isinstance(record.get(name), str)), None)
    if prompt is None and "tokens" in record:
        return _token_ids(tokens, place)
    if prompt is None:
        raise _no_text(place, None, record)
    completion = next((record[name] for name in _COMPLETIONS if isinstance(record.get(name), str)), "")
    return prompt + completion


def _no_text(place: str, field: str | None, there: Iterable[str]) -> InputError:
    wanted = "text, messages, tokens or prompt" if field is None else f"text column {field!r}"
    found = ", ".join(reprlib.repr(name).strip("'") for name in list(there)[:20])
    return InputError(f"{place}: has no {wanted}; name the text's column with --field (it has {found or 'none'})")


def _token_ids(tokens: Any, place: str) -> tuple[int, ...]:
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InputError(f"{place}: its tokens are no list of whole numbers")
    return tuple(tokens)


def _messages(messages: list[Any], place: str) -> tuple[Message, ...]:
    made = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise InputError(f"{place}: a message must have a role and a text as its content")
        made.append(Message(str(message.get("role", "user")), message["content"]))
    return tuple(made)


@dataclass(frozen=True)
class Shard:
    """The `index`-th, from 1, of `count` parts of a run's documents. Raises InputError for one that is not."""

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count <= MOST_SHARDS:
            given = f"{self.index}/{self.count}"
            raise InputError(f"there is no shard {given}; they go from 1/N to N/N, with N up to {MOST_SHARDS}")


@dataclass(frozen=True)
class Bundle:
    """Documents that are run together, each with the index of its corpus. No batch holds tokens of two bundles, so
    that what is computed for one does not depend on the others, to the last bit."""

    documents: tuple[tuple[int, Document], ...]

    @property
    def size(self) -> int:
        return sum(document.size for _, document in self.documents)


WHOLE = Shard()

SHUFFLED_BUNDLE_SIZE = 2**14
"""Of bundles in random order, which are small, for within a bundle documents are run by length."""


def bundles(corpora: Sequence[Corpus], shard: Shard = WHOLE, *, shuffled: bool = False) -> list[Bundle]:
    """One shard of all documents, in order, or `shuffled`, always in the same way. Bundles end as soon as they
    have BUNDLE_SIZE, and are dealt to the shards in turn."""
    documents = [(index, document) for index, corpus in enumerate(corpora) for document in corpus.documents]
    if shuffled:
        random.Random(0).shuffle(documents)
    enough = SHUFFLED_BUNDLE_SIZE if shuffled else BUNDLE_SIZE
    made: list[Bundle] = []
    waiting: list[tuple[int, Document]] = []
    size = 0
    for index, document in documents:
        waiting.append((index, document))
        size += document.size
        if size >= enough:
            made.append(Bundle(tuple(waiting)))
            waiting, size = [], 0
    if waiting:
        made.append(Bundle(tuple(waiting)))
    return made[shard.index - 1 :: shard.count]
