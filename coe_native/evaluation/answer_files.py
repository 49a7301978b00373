"""Answers that were made elsewhere: by this package earlier, by LiveCodeBench's runner, or by any other tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from coe_native.corpus.read import records
from coe_native.corpus.readers.records import Columns
from coe_native.errors import InputError
from coe_native.evaluation.attempts import Attempt
from coe_native.evaluation.tasks import check_unicode


class _Answer(msgspec.Struct):
    """The fields of all the formats."""

    task_id: str | int | None = None
    question_id: str | int | None = None
    completion: str | None = None
    solution: str | None = None
    code_list: list[str] | None = None
    tokens: int | None = None
    ended: str = ""
    sample: int = 0
    is_program: bool = False
    category: str = ""
    difficulty: str | None = None


def read_answers(path: Path) -> list[Attempt]:
    """Read ready-made answers, without any results in them.

    Args:
        path: A file of records (``.jsonl``, ``.json``, ``.parquet`` and so on) with ``task_id`` and ``completion``
            (or ``solution``, the whole program), as this package writes; or with ``question_id`` and
            ``code_list``, as LiveCodeBench reads. Several answers to a task are its samples.

    Raises:
        InputError: The file cannot be read, has no answers, or has an invalid one; names the line.
    """
    attempts: list[Attempt] = []
    counts: dict[str, int] = {}
    try:
        for record in records(path, Columns(texts=tuple(_Answer.__struct_fields__))):
            if isinstance(record, InputError):
                raise record
            for answer in _answers(record.fields, record.place):
                # Our own files number them; in others, they are numbered as they come.
                sample = answer.sample or counts.get(answer.task_id, 0)
                counts[answer.task_id] = sample + 1
                attempts.append(msgspec.structs.replace(answer, sample=sample))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not attempts:
        raise InputError(f"{path}: has no answers")
    return attempts


def _answers(fields: Any, place: str) -> list[Attempt]:
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        read = msgspec.convert({key: given[key] for key in given if key in _Answer.__struct_fields__}, _Answer)
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: {error}") from error
    name = read.task_id if read.task_id is not None else read.question_id
    programs = read.code_list if read.solution is None else [read.solution]
    texts = programs if read.completion is None else [read.completion]
    if name is None or texts is None:
        raise InputError(f"{place}: needs task_id and completion or solution, or question_id and code_list")
    try:
        check_unicode(str(name), read.category, read.difficulty or "", *texts)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return [
        Attempt(
            task_id=str(name),
            completion=each,
            tokens=read.tokens,
            ended=read.ended,
            category=read.category or (read.difficulty or "").lower(),
            is_program=read.is_program or read.completion is None,
            sample=read.sample,
        )
        for each in texts
    ]
