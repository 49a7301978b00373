"""Chat templates."""

from __future__ import annotations

import pytest

from coe_native.llama.thinking import close_thinking, open_block


@pytest.mark.parametrize(
    ("prompt", "closed"),
    [
        ("a<think>", "a<think>\n</think>\n\n"),
        ("a<think>\n", "a<think>\n</think>\n\n"),
        ("a<think:open>\n", "a<think:open>\n</think:open>\n\n"),
        ("a<seed:think>\n", "a<seed:think>\n</seed:think>\n\n"),
        ("a<thought>", "a<thought>\n</thought>\n\n"),
        ("a[THINK]", "a[THINK][/THINK]"),
        ("a◁think▷", "a◁think▷◁/think▷"),
        ("a<|START_THINKING|>", "a<|START_THINKING|><|END_THINKING|>"),
        ("a<|begin_of_thought|>\n", "a<|begin_of_thought|><|end_of_thought|>"),
        ("a<|channel>thought\n", "a<|channel>thought<channel|>"),
        ("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
        (
            "<|start|>assistant<|channel|>analysis<|message|>",
            "<|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("a<think>b</think>", "a<think>b</think>"),
        ("a<think></think>\n\n", "a<think></think>\n\n"),
        ("a<thinker-model", "a<thinker-model"),
        ("", ""),
    ],
)
def test_an_open_thinking_block_is_closed(prompt: str, closed: str) -> None:
    assert close_thinking(prompt) == closed
    assert open_block(closed) == ""


@pytest.mark.parametrize(
    ("prompt", "block"),
    [
        ("a<<ponder-thinking>>", "<<ponder-thinking>>"),
        ("a{{THOUGHT}}\n", "{{THOUGHT}}"),
        ("I think", ""),
        ("a</think>", ""),
        ("(for this reason)", ""),
        ("a<|im_start|>assistant\n", ""),
    ],
)
def test_a_block_that_cannot_be_closed_is_noticed(prompt: str, block: str) -> None:
    assert open_block(prompt) == block
