"""Chat templates."""

from __future__ import annotations

import pytest

from coe_native.llama.chat import close_thinking


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        ("a<think>", "a<think>\n</think>\n\n"),
        ("a<think>\n", "a<think>\n</think>\n\n"),
        ("a<think:open>\n", "a<think:open>\n</think:open>\n\n"),
        ("a<think>b</think>", "a<think>b</think>"),
        ("a<thinker-model", "a<thinker-model"),
        ("", ""),
    ],
)
def test_an_open_thinking_block_is_closed(prompt: str, closed: str) -> None:
    assert close_thinking(prompt) == closed
