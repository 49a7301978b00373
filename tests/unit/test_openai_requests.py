"""What clients of OpenAI's API send, as llama-cpp-python knows it."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from coe_native.errors import InputError
from coe_native.live.gate import BodyLimits, Gate
from coe_native.live.openai_requests import UnsupportedError, prompts_of, translated

CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ({"max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"max_completion_tokens": 4, "max_tokens": 5}, {"max_tokens": 4}),
        ({"max_completion_tokens": 4, "max_tokens": None}, {"max_tokens": 4}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"n": 1}, {"n": 1}),
        ({"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ({"echo": True, "max_tokens": 0}, {"echo": True, "max_tokens": 0}),
        (
            {"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}]},
            {"messages": [{"role": "system", "content": "d"}, {"role": "user", "content": "u"}]},
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}]},
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
                ]
            },
            {"messages": [{"role": "system", "content": "ab"}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            {"messages": [{"role": "user", "content": "a"}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
        ),
        ({"messages": "wrong"}, {"messages": "wrong"}),
        ({"messages": [5]}, {"messages": [5]}),
        ([1, 2], [1, 2]),
    ],
)
def test_requests_are_translated(sent: Any, known: Any) -> None:
    if isinstance(known, dict):
        known = {"repeat_penalty": 1.0} | known
    assert json.loads(translated(json.dumps(sent).encode()).body) == known


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({"include_usage": True}, True), ({"include_usage": False}, False), ({}, False), (None, False), ([], False)],
)
def test_streams_end_with_usage_on_request(options: Any, wanted: bool) -> None:
    assert translated(json.dumps({"stream": True, "stream_options": options}).encode()).wants_usage is wanted


@pytest.mark.parametrize(
    "limit",
    [
        {"max_tokens": 0},
        {"max_completion_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": -5, "echo": True},
        {"max_tokens": 0, "echo": True, "messages": []},
    ],
)
def test_answers_without_tokens_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match="max_tokens"):
        translated(json.dumps(limit).encode())


def test_several_choices_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="one choice"):
        translated(b'{"n": 2}')


@pytest.mark.parametrize(
    ("given", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1], "b"], [[1], "b"]), ("", [""])],
)
def test_prompts_are_texts_or_token_ids(given: Any, prompts: Any) -> None:
    assert prompts_of(given) == prompts


@pytest.mark.parametrize(
    "given", [None, 5, [], [[]], [True], [1, "a"], [[1, 2.0]], [[[1]]], {"a": 1}, ["a"] * 257]
)
def test_other_prompts_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match="prompt"):
        prompts_of(given)


def test_a_translated_body_is_counted_by_what_was_received() -> None:
    """Otherwise the limit of all bodies in progress would drift with each request."""
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, _: Any) -> None:
        got.append((await receive())["body"])
        assert dict(scope["headers"])[b"content-length"] == b"%d" % len(got[-1])

    body = b'{"max_completion_tokens": 4, "stream_options": {"include_usage": true}}'

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Any) -> None:
        pass

    gate = Gate(app, api_key=None, hosts=None, limits={"/c": BodyLimits(translate=translated)})
    headers = [(b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": "/c", "headers": headers}
    anyio.run(gate, scope, receive, send)
    assert [json.loads(sent) for sent in got] == [{"max_tokens": 4, "repeat_penalty": 1.0}]
    assert gate._n_bytes == 0
