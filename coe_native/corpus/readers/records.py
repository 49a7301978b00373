"""The content of one record of a structured file, chosen by its columns."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coe_native.corpus.documents import Document, Message
from coe_native.errors import InputError

_PROMPTS = ("prompt", "content", "instruction", "question")
_COMPLETIONS = ("completion", "answer", "solution")
KNOWN_COLUMNS = ("text", "messages", "tokens", *_PROMPTS, *_COMPLETIONS)
_MOST_NAMED = 20
"""Columns that an error names."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a record are read.

    Attributes:
        text: The column with the text; None: the first of the known ones that is present.
        label: The column by which documents are divided into strata; None: they are not.
    """

    text: str | None = None
    label: str | None = None


def document_of(record: Mapping[str, Any], columns: Columns, place: str) -> Document:
    """Return the document of a record.

    Raises:
        InputError: The record has no text, or no label; names `place`.
    """
    content = _content(record, columns.text, place)
    return Document(place, content, "" if columns.label is None else _label(record, columns.label, place))


def no_text(place: str, field: str | None, columns: Iterable[str]) -> InputError:
    """Return the error for a record without text, which names its columns."""
    wanted = "text, messages, tokens or prompt" if field is None else f"text column {field!r}"
    return InputError(
        f"{place}: has no {wanted}; name the text's column with --field (it has {_names(columns) or 'none'})"
    )


def _names(columns: Iterable[str]) -> str:
    return ", ".join(reprlib.repr(name).strip("'") for name in list(columns)[:_MOST_NAMED])


def _label(record: Mapping[str, Any], column: str, place: str) -> str:
    value = record.get(column)
    if not isinstance(value, str | int | float):
        raise InputError(
            f"{place}: has no text or number in column {column!r} to divide by (it has {_names(record)})"
        )
    return str(value)


def _content(record: Mapping[str, Any], field: str | None, place: str) -> Any:
    if field is not None:
        if not isinstance(record.get(field), str):
            raise no_text(place, field, record)
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
        raise no_text(place, None, record)
    completion = next((record[name] for name in _COMPLETIONS if isinstance(record.get(name), str)), "")
    return prompt + completion


def _token_ids(tokens: Any, place: str) -> tuple[int, ...]:
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InputError(f"{place}: its tokens are not a list of whole numbers")
    return tuple(tokens)


def _messages(messages: list[Any], place: str) -> tuple[Message, ...]:
    made = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise InputError(f"{place}: a message must have a role and a text as its content")
        made.append(Message(str(message.get("role", "user")), message["content"]))
    return tuple(made)
