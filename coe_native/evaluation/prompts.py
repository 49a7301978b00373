"""Prompts: what a model is asked where only the way it answers matters."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coe_native.corpus.documents import Message
from coe_native.corpus.read import records
from coe_native.corpus.readers.opening import inner_suffix
from coe_native.corpus.readers.records import Columns, document_of
from coe_native.corpus.readers.text import read_text
from coe_native.errors import InputError
from coe_native.evaluation.tasks import Task

_QUESTIONS = ("prompt", "question", "question_content", "instruction", "query", "text", "content")
_CONVERSATIONS = ("messages", "conversations", "conversation")
_NAMES = ("task_id", "question_id", "id", "name")
_CATEGORIES = ("category", "difficulty", "type")


def read_prompts(path: Path) -> list[Task]:
    """Read prompts.

    Args:
        path: A text file with a prompt in each line; or records (``.jsonl``, ``.json``, ``.csv``, ``.parquet``)
            with a column ``prompt``, ``question``, ``instruction`` or ``text``, or a conversation in
            ``messages`` or ``turns``, whose last answers are left out. ``task_id`` or ``id``, and
            ``category``, are kept.

    Raises:
        InputError: The file cannot be read, has no prompt, or names one twice.
    """
    tasks: dict[str, Task] = {}
    try:
        for task in _lines(path) if inner_suffix(path) in ("", ".txt", ".md") else _records(path):
            if task.task_id in tasks:
                raise InputError(f"{path}: has prompt {task.task_id[:80]} twice")
            tasks[task.task_id] = task
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not tasks:
        raise InputError(f"{path}: has no prompts")
    return list(tasks.values())


def _lines(path: Path) -> Iterator[Task]:
    for document in read_text(path, None):
        if isinstance(document, InputError):
            raise document
        text = document.content if isinstance(document.content, str) else "".join(map(str, document.content))
        for number, line in enumerate(io.StringIO(text, newline=None), 1):
            if line.strip():
                yield Task(str(number), (Message("user", line.strip()),), line.strip())


def _records(path: Path) -> Iterator[Task]:
    columns = (*_QUESTIONS, *_CONVERSATIONS, "turns", *_NAMES, *_CATEGORIES)
    for number, record in enumerate(records(path, Columns(texts=columns)), 1):
        if isinstance(record, InputError):
            raise record
        messages = _messages(record.fields, record.place)
        name = _first(record.fields, _NAMES)
        try:
            task = Task(
                task_id=str(number if name is None else name),
                messages=messages,
                beginning=messages[-1].content,
                category=str(_first(record.fields, _CATEGORIES) or ""),
            )
        except InputError as error:
            raise InputError(f"{record.place}: {error}") from error
        yield task


def _messages(fields: Mapping[str, Any], place: str) -> tuple[Message, ...]:
    conversation = next((name for name in _CONVERSATIONS if fields.get(name)), None)
    if conversation is not None:
        content = document_of({conversation: fields[conversation]}, Columns(), place).content
        turns = [turn for turn in content if isinstance(turn, Message)] if isinstance(content, tuple) else []
        while turns and turns[-1].role == "assistant":
            turns.pop()
        if turns:
            return tuple(turns)
    turn = fields.get("turns")
    text = turn[0] if isinstance(turn, list) and turn else _first(fields, _QUESTIONS)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{place}: has no prompt; it needs a text in one of {', '.join(_QUESTIONS)}, or messages")
    return (Message("user", text),)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)
