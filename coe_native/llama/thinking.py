"""How chat templates open a block of thinking, and how it is closed, so that a model answers at once."""

from __future__ import annotations

import re
from collections.abc import Callable

OFF = {"enable_thinking": False, "thinking": False, "thinking_budget": 0, "reasoning_effort": "low"}
"""Variables by which templates switch thinking off: Qwen, Gemma and GLM; DeepSeek; Seed-OSS; gpt-oss, which knows
no less than low."""

ON = {"enable_thinking": True, "thinking": True}
"""Variables by which they switch it on; how much a model thinks is left to its template."""

_FINAL = "<|channel|>final<|message|>"

_BLOCKS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    # Most models: <think>, <thinking>, <seed:think>, <thought>, <reasoning>.
    (r"<((?:\w+:)?(?:think|thought|reason)[^<>/]*)>\s*", lambda found: f"\n</{found[1]}>\n\n"),
    # Magistral and Kimi.
    (r"\[THINK\]\s*", lambda _: "[/THINK]"),
    (r"◁think▷\s*", lambda _: "◁/think▷"),
    # Cohere, and models trained on begin_of_thought.
    (r"<\|START_THINKING\|>\s*", lambda _: "<|END_THINKING|>"),
    (r"<\|begin_of_(thought|thinking)\|>\s*", lambda found: f"<|end_of_{found[1]}|>"),
    (r"<\|(?:think|thinking)_start\|>\s*", lambda _: "<|think_end|>"),
    # Gemma 4's channel, and harmony (gpt-oss), whose template leaves it to the model to open one.
    (r"<\|channel>thought\s*", lambda _: "<channel|>"),
    (r"<\|channel\|>analysis<\|message\|>\s*", lambda _: f"<|end|><|start|>assistant{_FINAL}"),
    (r"<\|start\|>assistant", lambda _: _FINAL),
)
"""What a prompt ends with that opens a block, and what closes it."""

_UNKNOWN = re.compile(
    r"[<\[{(◁«｜|](?!\W*end)[^\s/>\]}]*(?:think|thought|reason)\w*[^\s\w]{1,3}\s*\Z", re.IGNORECASE
)


_CLOSED = re.compile(
    r".*(?:</(?:\w+:)?(?:think|thought|reason)[^<>/]*>|\[/THINK\]|◁/think▷|<\|(?:END|end)_\w*(?:THINK|think|thought)\w*\|>"
    r"|<\|think_end\|>|<channel\|>)",
    re.DOTALL,
)
"""What a text with finished blocks of thinking has before its answer."""


def after_thinking(text: str) -> str:
    """Return what follows the blocks of thinking in an answer; all of it without any."""
    return _CLOSED.sub("", text, count=1)


def close_thinking(prompt: str) -> str:
    """Return a prompt with the thinking block closed that it ends with.

    Some templates open one even if thinking is off. Other prompts are returned unchanged.
    """
    for opening, closing in _BLOCKS:
        found = re.search(rf"{opening}\Z", prompt)
        if found is not None:
            return prompt.rstrip() + closing(found)
    return prompt


def open_block(prompt: str) -> str:
    """Return the thinking block that a prompt ends with and that `close_thinking` does not know; empty: none."""
    found = _UNKNOWN.search(prompt)
    return "" if found is None or close_thinking(prompt) != prompt else found[0].strip()
