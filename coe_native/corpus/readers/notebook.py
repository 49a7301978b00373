"""Jupyter notebooks: the sources of all cells are one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coe_native.corpus.documents import Document
from coe_native.corpus.readers.decoding import Found, decoded
from coe_native.corpus.readers.json_lines import parsed
from coe_native.corpus.readers.opening import open_corpus_file
from coe_native.errors import InputError


def read_notebook(path: Path) -> Iterator[Found]:
    """Yield a notebook's text and code, without outputs."""
    with open_corpus_file(path) as file:
        data = file.read()
    try:
        notebook = parsed(decoded(data, str(path)), str(path))
        cells = [cell["source"] for cell in notebook["cells"]]
        sources = [source if isinstance(source, str) else "".join(source) for source in cells]
    except InputError as error:
        yield error
    except (KeyError, TypeError):
        yield InputError(f"{path}: is not a Jupyter notebook; save it again")
    else:
        yield Document(str(path), "\n\n".join(filter(None, sources)))
