"""Read Parquet and Arrow files in a helper process, because a few hundred bytes can expand to terabytes."""

from __future__ import annotations

import datetime
import decimal
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coe_native.errors import InputError
from coe_native.files.regular import open_regular
from coe_native.helper_process import HelperError, HelperProcess, answer_questions

PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather")
"""Endings of files of the two formats."""

MOST_MEMORY = 2 << 30
"""Bytes that the helper may allocate."""

MOST_EXPANSION = 1000
"""Largest size of the text, as a multiple of the file's. Usually it is ten times as large as the file."""

_ALWAYS_ALLOWED = 64 << 20
"""Bytes of text that any file may have."""

_SECONDS = 60.0
"""Time limit for one batch of records."""

_BATCH = 128
"""Records that are read at once, unless they are large."""

_BATCH_BYTES = 64 << 20


class ColumnarFile:
    """The columns and records of a file. Use it in a ``with`` block, which ends the helper.

    All methods raise InputError if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self._most_text = max(_ALWAYS_ALLOWED, MOST_EXPANSION * file.seek(0, 2))
        self._helper = HelperProcess(
            "from coe_native.corpus.readers.columnar_helper import serve; serve()", str(path)
        )

    def __enter__(self) -> ColumnarFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.close()

    def column_names(self) -> tuple[list[str], list[str]]:
        """Return the names of all columns, and of those that hold text."""
        answer = self._ask({"names": True})
        return list(map(str, answer["names"])), list(map(str, answer["texts"]))

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all records, with these columns only."""
        left = self._most_text
        answer = self._ask({"columns": list(columns), "most": left})
        while answer["records"]:
            left -= answer["size"]
            yield from answer["records"]
            answer = self._ask({"most": left})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._helper.ask(question, _SECONDS)
        except HelperError as error:
            raise InputError(str(error)) from error
        if "error" in answer:
            raise InputError(answer["error"])
        return answer


def serve() -> None:
    """Read the file that the command line names. Runs in the helper."""
    import pyarrow

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    batches: Iterator[Any] = iter(())

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal batches
        if "names" in question:
            schema = _schema_and_batches(sys.argv[1], None)[0]
            texts = [field.name for field in schema if "string" in str(field.type)]
            return {"names": schema.names, "texts": texts}
        if "columns" in question:
            batches = _schema_and_batches(sys.argv[1], question["columns"])[1]
        batch = next((batch for batch in batches if len(batch)), None)
        records = [] if batch is None else [_plain(record) for record in batch.to_pylist()]
        size = len(json.dumps(records))
        if size > question["most"]:
            raise ValueError(f"it holds more than {MOST_EXPANSION} times as much text as the file has bytes")
        return {"records": records, "size": size}

    answer_questions(answer, _SECONDS, memory=MOST_MEMORY)


def _schema_and_batches(path: str, columns: list[str] | None) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a file, and its records in batches, with some columns only."""
    import pyarrow
    import pyarrow.parquet

    if path.lower().endswith(PARQUET):
        file = pyarrow.parquet.ParquetFile(path)
        rows, size = (
            file.metadata.num_rows,
            sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups)),
        )
        batch = max(1, min(_BATCH, _BATCH_BYTES * rows // max(size, 1)))
        return file.schema_arrow, file.iter_batches(batch, columns=columns or [], use_threads=False)
    mapped = pyarrow.memory_map(path)
    try:
        reader = pyarrow.ipc.open_stream(mapped)  # what datasets writes
        found = iter(reader)
    except pyarrow.ArrowInvalid:
        reader = pyarrow.ipc.open_file(mapped)
        found = (reader.get_batch(index) for index in range(reader.num_record_batches))

    def parts() -> Iterator[Any]:
        for batch in found:
            chosen = batch.select(columns or [])
            for start in range(0, len(chosen), _BATCH):
                yield chosen.slice(start, _BATCH)

    return reader.schema, parts()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it. Dates become texts, bytes their number, and other types None."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return {"bytes": len(value)}
    if isinstance(value, decimal.Decimal | datetime.date | datetime.time):
        return str(value)
    return value if isinstance(value, str | int | float) else None
