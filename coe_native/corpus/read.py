"""Read a corpus: a file, a directory, or standard input."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from coe_native.corpus.documents import Corpus, Document
from coe_native.corpus.readers.decoding import Found, begins_like_text
from coe_native.corpus.readers.json_lines import read_json_lines
from coe_native.corpus.readers.parquet import read_parquet
from coe_native.corpus.readers.records import Columns
from coe_native.corpus.readers.text import read_standard_input, read_text
from coe_native.corpus.readers.token_arrays import read_token_array
from coe_native.errors import InputError
from coe_native.files.regular import open_regular


def read_corpus(
    path: str | Path,
    field: str | Sequence[str] | None = None,
    *,
    label: str | None = None,
    skip_bad: bool = False,
) -> Corpus:
    """Return all documents of a file, a directory or standard input.

    Files of a directory are read in the order of their names. Hidden files, files that are not UTF-8 text, and
    symlinks to places outside the directory are skipped.

    Args:
        path: A file, a directory, or ``-`` for standard input, which is one text.
        field: The columns with the text, of ``.jsonl`` and ``.parquet`` files; None: those of the first shape that
            a record has (see `coe_native.corpus.readers.records`).
        label: The column by which documents are divided into strata.
        skip_bad: Leave out documents that cannot be read, instead of raising.

    Raises:
        InputError: Something cannot be read, or there is no document. Names the file and the line.
    """
    skipped: list[Path] = []
    documents: list[Document] = []
    bad: list[str] = []
    columns = Columns((field,) if isinstance(field, str) else tuple(field or ()), label)
    for document in read_standard_input() if str(path) == "-" else _read_path(Path(path), columns, skipped):
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
    total = sum(columns.read.values()) + sum(columns.ignored.values())
    ignored = tuple((name, length / total) for name, length in columns.ignored.items())
    return Corpus(str(path), tuple(documents), len(skipped), tuple(bad), tuple(columns.read), ignored)


def _read_path(path: Path, columns: Columns, skipped: list[Path]) -> Iterator[Found]:
    if path.is_dir():
        yield from _read_directory(path, columns, skipped)
        return
    try:
        yield from _read_file(path, columns)
    except OSError as error:
        yield InputError(f"{path}: cannot be read: {error.strerror or error}")


def _read_file(path: Path, columns: Columns) -> Iterator[Found]:
    match path.suffix.lower():
        case ".jsonl":
            return read_json_lines(path, columns)
        case ".parquet":
            return read_parquet(path, columns)
        case ".npy":
            return read_token_array(path)
        case _:
            return read_text(path)


def _read_directory(path: Path, columns: Columns, skipped: list[Path]) -> Iterator[Found]:
    inside = path.resolve()
    for entry in sorted(_files_in(path), key=lambda entry: entry.relative_to(path).as_posix()):
        hidden = any(part.startswith(".") for part in entry.relative_to(path).parts)
        try:
            if not entry.is_file():
                continue
            # A link in somebody else's directory must not lead to the user's own files.
            leads_outside = not entry.resolve().is_relative_to(inside)
        except OSError:  # for example a link to a name that is too long
            skipped.append(entry)
            continue
        if hidden or leads_outside or not _looks_like_text(entry):
            skipped.append(entry)
        else:
            yield from _read_path(entry, columns, skipped)


def _files_in(path: Path) -> Iterator[Path]:
    """Yield everything in a directory and below it that is not a directory. Symlinks are not followed."""
    waiting = [path]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _looks_like_text(path: Path) -> bool:
    """Return whether a file of a directory should be read. Programs, pictures and archives are skipped."""
    if path.suffix.lower() in (".npy", ".parquet"):
        return True
    with open_regular(path) as file:
        start = file.read(8192)
    return begins_like_text(start) and b"\0" not in start
