"""The content of one record of a structured file, chosen by its columns.

The first shape of this table that a record has is read. Each shape reads all of its columns that are there.

1. Columns that the user names (``--field``), joined.
2. A text without answers, or with prompts and answers rendered in it: ``text`` or ``content``.
3. A conversation: ``messages``, ``conversations`` or ``conversation``, with ``system`` and ``tools``.
4. Token ids: ``tokens`` or ``input_ids``.
5. Multiple choice: questions with ``options`` or ``choices``, lettered, and the answer.
6. Prompts and answers: the columns PROMPTS, then those of ANSWERS.

Parts are joined by a line break, unless one of them has white space there.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from coe_native.corpus.documents import Document, Message
from coe_native.errors import InputError

TEXTS = ("text", "content")
CONVERSATIONS = ("messages", "conversations", "conversation")
TOKENS = ("tokens", "input_ids")
CHOICES = ("options", "choices", "endings")
_CHOICE_COLUMNS: tuple[tuple[str, ...], ...] = (
    *(("opa", "opb", "opc", "opd", "ope"), ("a", "b", "c", "d", "e"), ("sol1", "sol2")),
    *(("option_a", "option_b", "option_c", "option_d"), ("ending0", "ending1", "ending2", "ending3")),
    *(("option1", "option2", "option3", "option4", "option5"), ("choice1", "choice2", "choice3", "choice4")),
)
"""Columns of one choice each: the first group of which a record has the first two."""
SYSTEM = ("system", "system_prompt")
PROMPTS = (
    *(*SYSTEM, "instruction", "prompt", "question", "problem", "query", *TEXTS, "input", "context"),
    *("passage", "article", "support", "document", "ctx", "premise", "sentence", "goal"),
)
ANSWERS = (
    *("reasoning", "thinking", "rationale", "output", "response", "solution", "answer", "answers", "completion"),
    *("chosen", "canonical_solution", "code", "summary", "highlights", "best_answer", "correct_answer"),
    *("target", "targets"),
)
_REASONING = ("reasoning", "thinking", "rationale")
_KEYS = ("answerkey", "answer_key", "answer_index", "answer_idx", "cop", "correct", "gold", "label")
"""Columns that name the right choice, beside ``answer``."""

_OF_CHOICES = (*CHOICES, *itertools.chain(*_CHOICE_COLUMNS))

KNOWN_COLUMNS = tuple(dict.fromkeys((*PROMPTS, *CONVERSATIONS, *TOKENS, *_OF_CHOICES, *ANSWERS, *_KEYS, "tools")))

_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "ai", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "ipython"), "tool"),
}
"""Names of roles in older datasets. Other roles are kept as they are."""

_KEPT_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""What else a chat template may print of a message."""

_LONG_PART = 40
"""Characters from which a part that another one holds is left out."""

_MOST_CELL = 1 << 20
"""Characters of a cell of a table that is parsed."""

_MOST_NAMED = 20
"""Columns that an error names."""


@dataclass(frozen=True)
class Record:
    """One record of a structured file.

    Attributes:
        place: Where it is, such as ``FILE:LINE``, for messages.
        fields: Its values by column.
    """

    place: str
    fields: Mapping[str, Any]


FoundRecord: TypeAlias = Record | InputError
"""What readers of structured files yield: a record, or what is wrong with it."""


@dataclass
class Columns:
    """Which columns of records are read, and which were.

    Attributes:
        texts: The columns with the text; empty: those of the first shape that a record has.
        label: The column by which documents are divided into strata; None: they are not.
        encoding: The encoding of text files; None: UTF-8, or UTF-16 with a byte order mark.
        read: Characters that were read of each column.
        ignored: Characters of text in columns that were not read.
    """

    texts: tuple[str, ...] = ()
    label: str | None = None
    encoding: str | None = None
    read: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the column of labels, if there is one."""
        return () if self.label is None else (self.label,)

    def count(self, record: Mapping[str, Any], used: Iterable[str], content: str) -> None:
        """Add a record whose columns `used` were read as `content`."""
        used = tuple(used)
        for name in used:
            self.read[name] = self.read.get(name, 0) + text_length(record.get(name))
        for name, value in record.items():
            if name not in used and name != self.label and not (isinstance(value, str) and value in content):
                length = text_length(value)
                if length:
                    self.ignored[name] = self.ignored.get(name, 0) + length


def document_of(record: Mapping[str, Any], columns: Columns, place: str) -> Document:
    """Return the document of a record.

    Raises:
        InputError: The record has no text, or no label; names `place`.
    """
    label = "" if columns.label is None else _label(record, columns.label, place)
    record = _with_known_names(record, columns)
    if not columns.texts:
        record = _with_parsed_cells(record)
    used, content, tools = _content(record, columns.texts, place)
    if isinstance(content, str):
        seen = content
    else:
        seen = "\n".join(part.content for part in content if isinstance(part, Message))
    columns.count(record, used, seen)
    return Document(place, content, label, tools)


def _with_parsed_cells(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record with messages and answers as values, where a table has them as JSON or Python text."""
    parsed = {}
    for name in ("prompt", "chosen", "completion", "answers"):
        value = record.get(name)
        if isinstance(value, str) and value.startswith(("[{", "{'text'", '{"text"')) and len(value) < _MOST_CELL:
            for parse in (json.loads, ast.literal_eval):
                with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                    parsed[name] = parse(value)
                    break
    return {**record, **parsed}


def _with_known_names(record: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """Return a record whose columns have the known names where they differ in case only, as in ``Question``."""
    own = {*columns.texts, *columns.labels}
    known: dict[str, Any] = {}
    for name, value in record.items():
        lower = name.lower()
        is_free = lower in KNOWN_COLUMNS and lower not in record and lower not in known and name not in own
        known[lower if is_free else name] = value
    return known


class NoTextColumnError(InputError):
    """A record that has none of the columns of text that are known or named."""


def no_text(place: str, fields: Sequence[str], columns: Iterable[str]) -> NoTextColumnError:
    """Return the error for a record without text, which names its columns."""
    wanted = f"text column {', '.join(map(repr, fields))}" if fields else "text, messages, prompt or tokens"
    return NoTextColumnError(
        f"{place}: has no {wanted}; name the text's column with --field (it has {_names(columns) or 'none'})"
    )


def _names(columns: Iterable[str]) -> str:
    return ", ".join(reprlib.repr(name).strip("'") for name in list(columns)[:_MOST_NAMED])


def text_length(value: Any) -> int:
    """Return the characters of text in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(text_length, value.values()))
    return sum(map(text_length, value)) if isinstance(value, list) else 0


def _label(record: Mapping[str, Any], column: str, place: str) -> str:
    value = record.get(column)
    if not isinstance(value, str | int | float):
        raise InputError(
            f"{place}: has no text or number in column {column!r} to divide by (it has {_names(record)})"
        )
    return str(value)


_Read = tuple[Iterable[str], "str | tuple[Message, ...] | tuple[int, ...]", str]
"""The columns that were read, the content, and the tools of a conversation as JSON."""


def _content(record: Mapping[str, Any], fields: Sequence[str], place: str) -> _Read:
    if fields:
        missing = [name for name in fields if name not in record]
        if missing:
            raise no_text(place, missing, record)
        return fields, _joined(_text(record, name, place) for name in fields), ""
    for shape in _SHAPES:
        read = shape(record, place)
        if read is not None:
            return read
    names = (*TEXTS, *CONVERSATIONS, *TOKENS, *PROMPTS, *ANSWERS)
    empty = next((name for name in names if name in record and record[name] is None), None)
    if empty is None:
        raise no_text(place, (), record)
    raise InputError(f"{place}: {empty!r} is null; --skip-bad leaves such records out")


def _present(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the columns that hold something. Pandas writes NaN for what is missing."""
    return [name for name in names if record.get(name) is not None and record[name] == record[name]]


def is_message(value: Any) -> bool:
    """Return whether a value is a message of a conversation."""
    named = (("role", "content"), ("from", "value"), ("role", "text"))
    return isinstance(value, Mapping) and any(
        isinstance(value.get(role), str) and content in value for role, content in named
    )


def _whole_text(record: Mapping[str, Any], place: str) -> _Read | None:
    if is_message(record):
        raise InputError(f"{place}: is a message outside of a conversation; put all of them into one `messages`")
    answers = [name for name in _present(record, ANSWERS) if name != "code" or " " in str(record[name])]
    for name in TEXTS:
        text = record.get(name)
        if isinstance(text, str) and text and (not answers or _is_rendered(record, name, answers)):
            return (name,), text, ""
    return None


def _named_conversation(record: Mapping[str, Any], place: str) -> _Read | None:
    names = _present(record, CONVERSATIONS)
    filled = [name for name in names if record[name]]
    if names and not filled:
        return None if _present(record, (*PROMPTS, *ANSWERS)) else (names, (), "")
    return _conversation(record, filled[0], place) if filled else None


def _tokens(record: Mapping[str, Any], place: str) -> _Read | None:
    """Read token ids. A number beside a prompt is a count of tokens."""
    names = _present(record, TOKENS)
    if not names or (not isinstance(record[names[0]], list) and _present(record, PROMPTS)):
        return None
    return names, _token_ids(record[names[0]], names[0], place), ""


def _prompted_conversation(record: Mapping[str, Any], place: str) -> _Read | None:
    """Read a conversation whose end, the chosen one of several, is in a column of its own."""
    end = next((name for name in ("chosen", "completion") if _is_conversation(record.get(name))), None)
    if end is None:
        return None
    prompt = record.get("prompt")
    if not isinstance(prompt, list) or not _is_conversation(prompt):
        return _conversation(record, end, place)
    is_repeated = record[end][: len(prompt)] == prompt
    whole = {**record, "prompt": "", end: record[end] if is_repeated else [*prompt, *record[end]]}
    used, content, tools = _conversation(whole, end, place)
    return (*used, "prompt"), content, tools


def _prompt_and_answer(record: Mapping[str, Any], place: str) -> _Read | None:
    prompts, answers = _present(record, PROMPTS), _present(record, ANSWERS)
    used = [*prompts, *answers]
    if not set(used) - set(SYSTEM):
        return None
    if all(type(record[name]) in (int, float, bool) for name in used):
        raise InputError(f"{place}: {used[0]!r} is a number; name a column of text with --field")
    unread = {name: text_length(value) for name, value in record.items() if name not in used}
    if not (prompts and answers) and 2 * sum(unread.values()) > text_length([record[name] for name in used]):
        larger = sorted(unread, key=lambda name: -unread[name])
        missing = "answers" if prompts else "prompts"
        raise InputError(
            f"{place}: has {', '.join(used)} but no known column for {missing}; name all columns to read with "
            f"--field (it also has {_names(larger)})"
        )
    before = [_turns_before(record[name]) for name in ("tools", "history") if record.get(name)]
    used += [name for name in ("tools", "history") if record.get(name)]
    texts = [_text(record, name, place) for name in [*prompts, *answers]]
    return used, _joined([*before, *_without_contained(texts)]), ""


def _turns_before(value: Any) -> str:
    """Return what came before a prompt as text: descriptions of tools, or pairs of prompts and answers."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(pair, list) for pair in value):
        return "\n".join(str(turn) for pair in value for turn in pair)
    return json.dumps(value, ensure_ascii=False)


def _without_contained(texts: Sequence[str]) -> list[str]:
    """Return texts without long ones that others hold, such as a solution that the whole answer repeats."""
    return [
        text
        for at, text in enumerate(texts)
        if len(text) < _LONG_PART
        or not any(text in other for i, other in enumerate(texts) if i != at)
        or text in texts[:at]
    ]


def _text(record: Mapping[str, Any], name: str, place: str) -> str:
    """Return a column as text: numbers as they are, lists line by line."""
    value = record[name]
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # answers of SQuAD
        value = value["text"]
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return "\n".join(dict.fromkeys(map(str, value)))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise InputError(f"{place}: {name!r} {_what(value)}; name a column of text with --field")


def _what(value: Any) -> str:
    """Say what a value is that should be text."""
    if value is None:
        return "is null"
    if isinstance(value, Mapping) and set(value) == {"bytes"}:
        return "holds bytes"
    return (
        f"is {'an object' if isinstance(value, Mapping) else 'a list' if isinstance(value, list) else 'no text'}"
    )


def _is_rendered(record: Mapping[str, Any], name: str, answers: Sequence[str]) -> bool:
    """Return whether a text holds the prompts and answers of its record, as in datasets of instructions."""
    text = record[name].rstrip()
    no_prompts = (*TEXTS, *SYSTEM)  # templates may leave the system's message out
    prompts = [other for other in PROMPTS if other not in no_prompts and isinstance(record.get(other), str)]
    parts = [record[other] for other in (*prompts, *answers)]
    texts = [str(part).strip() for part in parts if isinstance(part, str | int | float)]
    if len(texts) < len(parts) or not all(part in text for part in texts):
        return False
    return bool(prompts) or text.endswith(texts[-1])


def _joined(parts: Iterable[str]) -> str:
    """Join parts by line breaks, where neither side has white space."""
    text = ""
    for part in filter(None, parts):
        text += part if not text or text[-1].isspace() or part[0].isspace() else f"\n{part}"
    return text


def _token_ids(tokens: Any, name: str, place: str) -> tuple[int, ...]:
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise InputError(f"{place}: its {name} are not a list of whole numbers")
    return tuple(tokens)


def _multiple_choice(record: Mapping[str, Any], place: str) -> _Read | None:
    prompts = _present(record, PROMPTS)
    columns, labels, choices = _choices(record, place)
    if not prompts or not choices:
        return None
    reasoning = _present(record, _REASONING)
    used = [*prompts, *columns, *reasoning]
    lines = [_joined([_text(record, name, place) for name in prompts])]
    lines += [f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True)]
    lines += [_text(record, name, place) for name in reasoning]
    answers = []
    for name in _present(record, ("answer", *_KEYS, *ANSWERS)):
        if name not in used:
            used.append(name)
            answers.append(_answer(record, name, columns, labels, place))
    known = [answer for answer in answers if answer in labels]
    # The text of a choice is not repeated beside its letter.
    repeated = [str(choices[labels.index(answer)]) for answer in known]
    lines += [f"Answer: {answer}" for answer in dict.fromkeys(answers) if answer and answer not in repeated]
    return used, "\n".join(lines), ""


def _answer(
    record: Mapping[str, Any], name: str, columns: Sequence[str], labels: Sequence[str], place: str
) -> str:
    """Return the answer of a multiple choice: its letter if the record has its number; empty if it has none."""
    answer = record[name]
    if isinstance(answer, float) and answer.is_integer():  # pandas, where another record has none
        answer = int(answer)
    if answer in (-1, "", "-1"):  # in sets for testing
        return ""
    numbered = [column[-1] for column in columns]
    if str(answer) in numbered and "1" in numbered:  # option1, option2
        return labels[numbered.index(str(answer))]
    is_number = type(answer) is int or (isinstance(answer, str) and answer.isdecimal() and answer not in labels)
    if is_number and name in (*_KEYS, "answer") and 0 <= int(answer) < len(labels):
        return labels[int(answer)]
    return _text(record, name, place)


def _choices(record: Mapping[str, Any], place: str) -> tuple[list[str], list[str], list[Any]]:
    """Return the columns of the choices, their letters, and the choices themselves; empty without choices."""
    named = _present(record, CHOICES)
    if not named:
        family = next((names for names in _CHOICE_COLUMNS if len(_present(record, names[:2])) == 2), ())
        columns = _present(record, family)
        return columns, [_letter(index) for index in range(len(columns))], [record[name] for name in columns]
    given = record[named[0]]
    labels = None
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):  # ARC, CommonsenseQA
        labels, given = given.get("label"), given["text"]
    elif isinstance(given, Mapping):  # MedQA; Parquet has null for letters that other records have
        there = {letter: choice for letter, choice in given.items() if choice is not None}
        labels, given = list(there), list(there.values())
    if not isinstance(given, list) or not all(isinstance(choice, str | int | float) for choice in given):
        raise InputError(f"{place}: {named[0]!r} is not a list of texts; name a column of text with --field")
    if not isinstance(labels, list) or len(labels) != len(given):
        labels = [_letter(index) for index in range(len(given))]
    return named[:1], labels, given


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _conversation(record: Mapping[str, Any], name: str, place: str) -> _Read:
    turns = _from_json(record[name], name, place)
    if not _is_conversation(turns):
        raise InputError(f"{place}: {name!r} is not a list of messages")
    messages = list(messages_of(turns, place))
    used = [name]
    system = next((column for column in SYSTEM if isinstance(record.get(column), str) and record[column]), None)
    if system is not None and messages[0].role != "system":
        messages.insert(0, Message("system", record[system]))
        used.append(system)
    seen = "\n".join(message.content for message in messages)
    others = [column for column in PROMPTS if column not in (*SYSTEM, *TEXTS)]
    prompts = [column for column in others if isinstance(record.get(column), str) and record[column] not in seen]
    if prompts:
        text = _joined(record[column] for column in prompts)
        messages.insert(messages[0].role == "system", Message("user", text))
        used += prompts
    if messages[-1].role == "user":
        conversations = [column for column in ANSWERS if is_message(record.get(column))]
        conversations += [column for column in ANSWERS if _is_conversation(record.get(column))]
        answers = [column for column in _present(record, ANSWERS) if column not in (name, *conversations)]
        text = _joined(_text(record, column, place) for column in answers)
        messages += [Message("assistant", text)] if text else []
        used += answers
    chosen = record.get("chosen")
    if name != "chosen" and messages[-1].role == "user" and (is_message(chosen) or _is_conversation(chosen)):
        messages += messages_of(chosen if isinstance(chosen, list) else [chosen or {}], place)
        used.append("chosen")
    tools = _tools(*(record[column] for column in _present(record, ("tools", "functions"))[:1]), place=place)
    used += ["tools"] if tools else []
    return used, tuple(messages), tools


def _tools(given: Any = None, *, place: str) -> str:
    """Return the tools of a conversation as a JSON list; empty: none."""
    tools = _from_json(given, "tools", place) if given else None
    tools = [tools] if isinstance(tools, Mapping) else tools
    if not tools:
        return ""
    if not isinstance(tools, list):
        raise InputError(f"{place}: 'tools' is not a list of tools")
    return json.dumps([_from_json(tool, "tools", place) for tool in tools], sort_keys=True)


def _from_json(value: Any, name: str, place: str) -> Any:
    """Return a value that may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: {name!r} is text but not JSON ({error})") from error


def messages_of(turns: Iterable[Mapping[str, Any]], place: str) -> tuple[Message, ...]:
    """Return the messages of a conversation.

    Args:
        turns: Objects with ``role`` and ``content``, or ``from`` and ``value``.
        place: Where they are, for messages.

    Raises:
        InputError: One has no role or no text.
    """
    return tuple(_message(turn, place) for turn in turns)


def _message(turn: Mapping[str, Any], place: str) -> Message:
    role = next((turn[key] for key in ("role", "from") if isinstance(turn.get(key), str)), None)
    if role is None:
        raise InputError(f"{place}: a message has no role (it has {_names(turn)})")
    contents = [turn[key] for key in ("content", "value", "text") if turn.get(key) is not None]
    content = next(filter(None, contents), contents[0] if contents else None)
    rest = {key: turn[key] for key in _present(turn, _KEPT_FIELDS) if turn[key]}
    for key in ("reasoning", "thinking"):
        if turn.get(key):
            rest.setdefault("reasoning_content", turn[key])
    if isinstance(turn.get("function_call"), Mapping):  # OpenAI's API before tools
        rest.setdefault("tool_calls", [{"type": "function", "function": dict(turn["function_call"])}])
    calls = rest["tool_calls"] = _from_json(rest.get("tool_calls", []), "tool_calls", place)
    if not calls:
        del rest["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InputError(f"{place}: 'tool_calls' of a message is not a list of objects")
    odd = [key for key in rest if key != "tool_calls" and not isinstance(rest[key], str)]
    if odd:
        raise InputError(f"{place}: {odd[0]!r} of a message is not a text")
    if content is None and not rest:
        raise InputError(f"{place}: a message of role {role!r} has no content; --skip-bad leaves such records out")
    role = _ROLES.get(role.lower(), role.lower())
    return Message(role, _parts(content, place), json.dumps(rest, sort_keys=True) if rest else "")


def _parts(content: Any, place: str) -> str:
    """Return the content of a message: a text, or parts that are texts."""
    given = content if isinstance(content, list) else [] if content is None else [content]
    parts = [_part(part) for part in given]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        raise InputError(f"{place}: a message holds something else than text; only text can be profiled")
    return "".join(texts)


def _part(part: Any) -> Any:
    """Return the text of a part; other kinds, such as pictures and calls, have none."""
    if not isinstance(part, Mapping):
        return part
    return part.get("text") if part.get("type", "text") in ("text", "input_text", "output_text") else None


_SHAPES = (_whole_text, _named_conversation, _tokens, _multiple_choice, _prompted_conversation, _prompt_and_answer)
"""What a record may be. Each returns None for a record that is something else."""
