"""Read a corpus: a file, a directory, or standard input."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from coe_native.corpus.corpora import Corpus
from coe_native.corpus.directories import DirectoryRules, files_of
from coe_native.corpus.documents import Document
from coe_native.corpus.readers.columnar import columnar
from coe_native.corpus.readers.columnar_helper import ARROW, PARQUET
from coe_native.corpus.readers.decoding import Found, NotTextError, begins_like_text
from coe_native.corpus.readers.json_file import json_file
from coe_native.corpus.readers.json_lines import NotRecordsError, json_lines
from coe_native.corpus.readers.notebook import read_notebook
from coe_native.corpus.readers.opening import MissingPackageError, inner_suffix, open_corpus_file
from coe_native.corpus.readers.records import Columns, FoundRecord, NoTextColumnError, Record, document_of
from coe_native.corpus.readers.tables import table
from coe_native.corpus.readers.text import read_standard_input, read_text
from coe_native.corpus.readers.token_arrays import read_token_array
from coe_native.corpus.readings import FileReadings, Readout
from coe_native.errors import InputError, printable
from coe_native.files.regular import LfsPointerError

_TRIED = 20
"""Records of a file in a directory of which one must be a document: otherwise the file is a program's own."""

_MAY_BE_TEXT = (".json", ".csv", ".tsv")
"""Endings of files that are corpora in one directory, and a program's own files in another."""


def read_corpus(
    path: str | Path,
    field: str | Sequence[str] | None = None,
    *,
    label: str | None = None,
    skip_bad: bool = False,
    encoding: str | None = None,
    exclude: str | Sequence[str] = (),
    include_ignored: bool = False,
    parse_special: bool = False,
) -> Corpus:
    """Return all documents of a file, a directory or standard input.

    Files of a directory are read in the order of their names, each once. What is hidden, named in a
    ``.gitignore``, part of dependencies or of a build, or not text is skipped, and so are symlinks to places
    outside the directory.

    Args:
        path: A file, a directory, or ``-`` for standard input, which is one text.
        field: The columns with the text, of files with records; None: those of the first shape that a record has
            (see `coe_native.corpus.readers.records`).
        label: The column by which documents are divided into strata.
        skip_bad: Leave out documents that cannot be read, instead of raising.
        encoding: The encoding of text; None: UTF-8, or UTF-16 with a byte order mark.
        exclude: Patterns of a directory's files to leave out, as in ``.gitignore``.
        include_ignored: Read what ``.gitignore`` names, and folders of dependencies and of builds.
        parse_special: Parse special tokens out of texts, which a chat template has rendered already.

    Raises:
        InputError: Something cannot be read, or there is no document. Names the file and the line.
    """
    if path == "":
        raise InputError("the path of a corpus is empty")
    if encoding is not None:
        _check_encoding(encoding)
    named = (field,) if isinstance(field, str) else tuple(field or ())
    columns = Columns(named, label, encoding)
    skipped: Counter[str] = Counter()
    source = _source(
        path,
        encoding,
        DirectoryRules((exclude,) if isinstance(exclude, str) else tuple(exclude), include_ignored),
        skipped,
    )
    readout = Readout()
    bad: list[str] = []
    for found in source(columns, skipped):
        if not isinstance(found, Document):
            if not skip_bad:
                raise found
            bad.append(str(found))
        elif found.content:
            readout.add(replace(found, parse_special=parse_special))
    if readout.count == 0:
        reasons = ", ".join(f"{number} ({reason})" for reason, number in skipped.items())
        why = f"; skipped {reasons}" if reasons else ""
        raise InputError(bad[0] if bad else f"{path}: holds no text{why}")

    def again() -> Iterator[Document]:
        for found in source(Columns(named, label, encoding), Counter()):
            if not isinstance(found, Document):
                if str(found) not in bad:
                    raise found
            elif found.content:
                yield replace(found, parse_special=parse_special)

    total = sum(columns.read.values()) + sum(columns.ignored.values())
    return Corpus(
        name=str(path),
        documents=readout.documents(again),
        skipped=tuple(skipped.items()),
        bad=tuple(bad),
        columns_read=tuple(columns.read),
        columns_ignored=tuple((name, length / total) for name, length in columns.ignored.items()),
    )


def _check_encoding(encoding: str) -> None:
    try:
        b"a".decode(encoding, errors="replace")
    except (LookupError, ValueError) as error:
        raise InputError(f"{encoding!r} is not an encoding of text; try utf-8, latin-1 or cp1252") from error


def _source(
    path: str | Path, encoding: str | None, rules: DirectoryRules, skipped: Counter[str]
) -> Callable[[Columns, Counter[str]], Iterator[Found]]:
    """Return what reads a corpus, as often as its documents are needed."""
    if str(path) == "-":
        found = list(read_standard_input(encoding))
        return lambda *_: iter(found)
    path = Path(path)
    try:
        is_directory = path.is_dir()
    except OSError as error:  # for example a name that is too long
        raise InputError(f"{printable(str(path), 100)}: cannot be read: {error.strerror or error}") from error
    if is_directory:
        return FileReadings(list(files_of(path, rules, skipped)), _read_file_of_directory).found
    return FileReadings([path], _read_file).found


def _read_file(path: Path, columns: Columns, _: Counter[str]) -> Iterator[Found]:
    """Yield a file's documents, and errors of the system and of the file as a whole."""
    try:
        yield from _reader(path, columns)
    except InputError as error:
        yield error
    except OSError as error:
        yield InputError(f"{path}: cannot be read: {error.strerror or error}")


_RECORDS: Mapping[str, Callable[[Path, Columns], Iterator[FoundRecord]]] = {
    ".jsonl": lambda path, columns: json_lines(path, columns.encoding),
    ".ndjson": lambda path, columns: json_lines(path, columns.encoding),
    ".jsonlines": lambda path, columns: json_lines(path, columns.encoding),
    ".jl": lambda path, columns: json_lines(path, columns.encoding),
    ".json": lambda path, columns: json_file(path, columns.encoding),
    ".csv": lambda path, columns: table(path, columns.encoding),
    ".tsv": lambda path, columns: table(path, columns.encoding, delimiter="\t"),
    **{
        suffix: lambda path, columns: columnar(path, columns.texts, columns.labels)
        for suffix in (*PARQUET, *ARROW)
    },
}
"""The reader of each format with records."""


def records(path: Path, columns: Columns) -> Iterator[FoundRecord]:
    """Yield the records of a file, by its ending.

    Raises:
        InputError: No file with this ending holds records.
    """
    reader = _RECORDS.get(inner_suffix(path))
    if reader is None:
        raise InputError(f"{path}: holds no records; its name must end in {', '.join(_RECORDS)}")
    return reader(path, columns)


def _reader(path: Path, columns: Columns) -> Iterator[Found]:
    suffix = inner_suffix(path)
    if suffix in _RECORDS:
        return _documents(records(path, columns), columns)
    if suffix == ".ipynb":
        return read_notebook(path)
    return read_token_array(path) if suffix == ".npy" else read_text(path, columns.encoding)


def _documents(found: Iterator[FoundRecord], columns: Columns) -> Iterator[Found]:
    for record in found:
        try:
            yield document_of(record.fields, columns, record.place) if isinstance(record, Record) else record
        except InputError as error:
            yield error


def _read_file_of_directory(path: Path, columns: Columns, skipped: Counter[str]) -> Iterator[Found]:
    """Yield the documents of a file of a directory. What is not text is skipped."""
    suffix = inner_suffix(path)
    try:
        with open_corpus_file(path) as file:
            start = file.read(8192)
    except OSError as error:
        yield InputError(f"{path}: cannot be read: {error.strerror or error}")
        return
    except MissingPackageError as error:
        yield error
        return
    except InputError as error:
        is_pointer = isinstance(error, LfsPointerError)
        skipped["Git LFS pointer: run `git lfs pull`" if is_pointer else "archive, or damaged"] += 1
        return
    if suffix not in (".npy", *PARQUET, *ARROW) and not begins_like_text(start, columns.encoding):
        skipped["not text"] += 1
        return
    found = _read_file(path, columns, skipped)
    if suffix in _MAY_BE_TEXT and not columns.texts:
        trial = itertools.islice(_read_file(path, Columns(encoding=columns.encoding), skipped), _TRIED)
        if all(isinstance(document, NoTextColumnError | NotRecordsError) for document in trial):
            found = read_text(path, columns.encoding)
    for document in found:
        if isinstance(document, NotTextError) and suffix not in _RECORDS:
            skipped["not text"] += 1
        else:
            yield document
