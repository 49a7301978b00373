"""How conversations are offered to chat templates, the plainer the later."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe_native.corpus.corpora import Corpus
from coe_native.corpus.documents import Document, Message
from coe_native.corpus.in_memory import corpus_of
from coe_native.llama.conversations import renderings, shows_tools

CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
ASKED = (
    Message("system", "Be terse."),
    Message("user", "What is 2 + 3?"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "5", json.dumps({"tool_call_id": "c"})),
    Message("assistant", "It is 5."),
)

roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
messages = st.lists(st.builds(Message, roles, st.text()), min_size=1)


def test_the_first_rendering_is_the_conversation_itself() -> None:
    turns, tools = next(renderings(ASKED, TOOLS))
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2]["tool_calls"][0]["function"]["arguments"] == {"a": 2}, "as transformers passes it to templates"
    assert turns[3]["tool_call_id"] == "c"
    assert tools == json.loads(TOOLS)


def test_later_renderings_are_for_templates_that_refuse_something() -> None:
    _, without_system, without_tools, alternating, two_roles = renderings(ASKED, TOOLS)
    assert [turn["role"] for turn in two_roles[0]] == ["user", "assistant", "user", "assistant"]
    assert [turn["role"] for turn in without_system[0]] == ["user", "assistant", "tool", "assistant"]
    assert without_system[0][0]["content"] == "Be terse.\n\nWhat is 2 + 3?"
    assert without_system[1] == json.loads(TOOLS)
    assert all(set(turn) == {"role", "content"} for turn in without_tools[0])
    assert json.loads(without_tools[0][2]["content"])["name"] == "add"
    assert [turn["role"] for turn in alternating[0]] == ["user", "assistant", "user", "assistant"]
    assert without_tools[1] == alternating[1] == []


@given(messages)
def test_no_rendering_loses_text_and_the_last_one_alternates(given_messages: list[Message]) -> None:
    *_, last = renderings(given_messages, "")
    for turns, _ in renderings(given_messages, ""):
        text = "\n\n".join(turn["content"] for turn in turns)
        assert all(message.content in text for message in given_messages)
    roles_of_last = [turn["role"] for turn in last[0]]
    assert all(one != other for one, other in itertools.pairwise(roles_of_last))


def test_the_last_rendering_begins_with_the_user_and_knows_two_roles() -> None:
    turns = (Message("assistant", "a"), Message("system", "b"), Message("critic", "c"), Message("assistant", "d"))
    *_, (last, _) = renderings(turns, "")
    assert [(turn["role"], turn["content"]) for turn in last] == [
        ("user", ""),
        ("assistant", "a"),
        ("user", "b\n\nc"),
        ("assistant", "d"),
    ]


@pytest.mark.parametrize(("text", "expected"), [("add 5", True), ("add", False), ("5", False)])
def test_a_rendering_must_show_calls_and_results(text: str, expected: bool) -> None:
    turns, _ = next(renderings(ASKED, TOOLS))
    assert shows_tools(text, turns, []) == expected


def test_digests_tell_conversations_with_other_fields_apart() -> None:
    plain = (Message("user", "a"), Message("assistant", "b"))
    reasoned = (Message("user", "a"), Message("assistant", "b", '{"reasoning_content": "c"}'))
    corpora = [
        Corpus("x", (Document("p", plain),)),
        Corpus("x", (Document("p", plain, tools="[1]"),)),
        Corpus("x", (Document("p", reasoned),)),
        Corpus("x", (Document("p", "a", parse_special=True),)),
        corpus_of(["a"]),
    ]
    assert len({corpus.sha256 for corpus in corpora}) == len(corpora)
