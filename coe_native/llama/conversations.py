"""Conversations as chat templates take them, and plainer ones for templates that refuse some of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from coe_native.corpus.documents import Message
from coe_native.llama.thinking import after_thinking

Turn = dict[str, Any]

_SYSTEM = ("system", "developer")


def renderings(messages: Sequence[Message], tools: str) -> Iterator[tuple[list[Turn], list[Any]]]:
    """Yield a conversation as messages and tools for a template, the plainer the later.

    First as it is; then with the system's text in the first turn of the user, for templates that know no system;
    then with tools and their calls as JSON text; then with all but the assistant's turns as the user's, and
    neighbouring turns of one role merged, for templates that want user and assistant to alternate.
    """
    listed = json.loads(tools or "[]")
    turns = [_with_parsed_calls(message.as_turn()) for message in messages]
    yield turns, listed
    if turns[0]["role"] in _SYSTEM:
        yield _without_system(turns), listed
    plain = _without_tools(turns, tools)
    if plain != turns:
        yield plain, []
    yield _alternating(_without_system(plain)), []
    yield _alternating([turn if turn["role"] == "assistant" else {**turn, "role": "user"} for turn in plain]), []


def shows_contents(text: str, turns: Sequence[Turn]) -> bool:
    """Return whether a text has the contents of all turns. Templates leave out thinking in earlier ones."""
    last = str(turns[-1].get("reasoning_content", "")).strip()
    return last in text and all(after_thinking(turn["content"]).strip() in text for turn in turns)


def shows_tools(text: str, turns: Sequence[Turn], tools: Sequence[Any]) -> bool:
    """Return whether a rendered text has all tools, their calls with arguments, and what they returned.

    The turns of the user, who may mention names of tools, are looked for too, so that each is counted once.
    """
    names = [tool["function"]["name"] for tool in tools if isinstance(tool, dict) and _is_function(tool)]
    names += [call["function"]["name"] for turn in turns for call in _calls(turn)]
    others = "".join(turn["content"] for turn in turns)
    shown = all(text.count(name) >= names.count(name) + others.count(name) for name in set(names))
    results = [turn["content"].strip() for turn in turns if turn["role"] not in ("user", "assistant", *_SYSTEM)]
    arguments = [
        leaf for turn in turns for call in _calls(turn) for leaf in _leaves(call["function"].get("arguments"))
    ]
    return shown and all(part in text for part in (*results, *arguments))


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts in the arguments of a call. Those that JSON escapes are left out."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif isinstance(value, str) and value.isalnum():
        yield value


def _is_function(call: Turn) -> bool:
    return isinstance(call.get("function"), dict) and isinstance(call["function"].get("name"), str)


def _calls(turn: Turn) -> list[Turn]:
    """Return the calls of a turn that have the usual form."""
    return [call for call in turn.get("tool_calls", ()) if _is_function(call)]


def _with_parsed_calls(turn: Turn) -> Turn:
    """Return a turn with the arguments of calls as objects. OpenAI's API writes them as JSON text."""
    if "tool_calls" in turn:  # some datasets have functions in place of calls
        turn["tool_calls"] = [
            {"type": "function", "function": call} if "name" in call and "function" not in call else call
            for call in turn["tool_calls"]
        ]
    for call in _calls(turn):
        arguments = call["function"].get("arguments")
        if isinstance(arguments, str):
            try:
                call["function"]["arguments"] = json.loads(arguments)
            except (ValueError, RecursionError):
                continue
    return turn


def _without_system(turns: list[Turn]) -> list[Turn]:
    if not turns or turns[0]["role"] not in _SYSTEM:
        return turns
    text, rest = turns[0]["content"], turns[1:]
    for index, turn in enumerate(rest):
        if turn["role"] == "user":
            merged = {**turn, "content": f"{text}\n\n{turn['content']}"}
            return [*rest[:index], merged, *rest[index + 1 :]]
    return [{"role": "user", "content": text}, *rest]


def _without_tools(turns: list[Turn], tools: str) -> list[Turn]:
    """Return turns without fields: tools, calls and reasoning are written into the contents."""
    plain = []
    for turn in turns:
        parts = [turn.get("reasoning_content", ""), turn["content"]]
        parts += [
            json.dumps(call.get("function", call), ensure_ascii=False) for call in turn.get("tool_calls", [])
        ]
        role = "user" if turn["role"] == "tool" else turn["role"]
        plain.append({"role": role, "content": "\n".join(filter(None, parts))})
    if tools and plain[0]["role"] in _SYSTEM:
        plain[0] = {**plain[0], "content": f"{plain[0]['content']}\n\n{tools}"}
    elif tools:
        plain.insert(0, {"role": "system", "content": tools})
    return plain


def _alternating(turns: list[Turn]) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            merged[-1] = {**turn, "content": f"{merged[-1]['content']}\n\n{turn['content']}"}
        else:
            merged.append(turn)
    if merged and merged[0]["role"] == "assistant":  # such templates begin with the user
        merged.insert(0, {"role": "user", "content": ""})
    return merged
