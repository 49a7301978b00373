"""Conversations through chat templates that refuse or leave out some of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.bad_files import write_reader

import coe_native as coe
from coe_native.corpus.documents import Message
from coe_native.errors import InputError
from coe_native.llama.text import ModelText

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "add"}}])
ASKED = (
    Message("system", "Be terse."),
    Message("user", "What is 2 + 3?"),
    Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
    Message("tool", "five"),
    Message("assistant", "It is 5."),
)

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
WITH_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments.a + 1 }}]{% endfor %}"
    "{% endfor %}"
)


@pytest.fixture
def text_of(tmp_path: Path) -> Iterator[Callable[[str], ModelText]]:
    """The text side of a model with a template."""
    loaded: list[coe.Model] = []

    def load(template: str) -> ModelText:
        write_reader(tmp_path / "a.gguf", template)
        loaded.append(coe.Model(tmp_path / "a.gguf", n_ctx=32, tokenizer_only=True))
        return loaded[-1].text

    yield load
    for model in loaded:
        model.close()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (WITH_TOOLS, "<system>Be terse.<user>What is 2 + 3?<assistant>[add 3]<tool>five<assistant>It is 5."),
        (PLAIN, '<assistant>{"name": "add", "arguments": {"a": 2}}<user>five<assistant>It is 5.'),
        (NO_SYSTEM, "<user>Be terse.\n\n[{"),
        (ALTERNATING, '<assistant>{"name": "add", "arguments": {"a": 2}}<user>five<assistant>It is 5.'),
    ],
)
def test_calls_of_tools_are_rendered_by_the_template_or_as_json(
    text_of: Callable[[str], ModelText], template: str, expected: str
) -> None:
    text = text_of(template).render_chat(ASKED, TOOLS)
    assert expected in text
    assert all(part in text for part in ("Be terse.", '{"name": "add"}', "What is 2 + 3?", "five", "It is 5."))


def test_neighbouring_turns_of_one_role_are_merged_for_templates_that_want_it(
    text_of: Callable[[str], ModelText],
) -> None:
    turns = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"))
    assert text_of(ALTERNATING).render_chat(turns) == "<user>a\n\nb<assistant>c"
    assert text_of(PLAIN).render_chat(turns) == "<user>a<user>b<assistant>c"


def test_a_template_that_refuses_everything_is_named_with_its_reason(text_of: Callable[[str], ModelText]) -> None:
    with pytest.raises(InputError, match=r"a\.gguf.*nothing goes"):
        text_of("{{ raise_exception('nothing goes') }}").render_chat(ASKED, TOOLS)


def test_plainer_renderings_are_reported(text_of: Callable[[str], ModelText]) -> None:
    for template, expected in ((NO_SYSTEM, "system"), (PLAIN, "leaves out"), (WITH_TOOLS, "")):
        text = text_of(template)
        text.render_chat(ASKED, TOOLS)
        text.render_chat((Message("user", "a"),))
        assert len(text.rendered_plainly) == bool(expected)
        assert all(expected in reason for reason in text.rendered_plainly)


def test_the_date_of_templates_is_recorded(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %B %Y') }}" + PLAIN
    turns = [{"role": "user", "content": "a"}]
    profiles = {}
    for name, text in (("clock", template), ("plain", PLAIN)):
        write_reader(tmp_path / f"{name}.gguf", text)
        for date in ("2026-01-01", "2027-12-31"):
            with coe.Model(tmp_path / f"{name}.gguf", n_ctx=64, date=date) as model:
                profiles[name, date] = coe.profile(model, turns)
    assert [profile.corpora[0].date for profile in profiles.values()] == ["2026-01-01", "2027-12-31", "", ""]
    first, second, *others = profiles.values()
    assert not np.array_equal(first.histograms, second.histograms)
    assert np.array_equal(others[0].histograms, others[1].histograms)
    first.save(tmp_path / "p.gguf")
    assert coe.RoutingProfile.load(tmp_path / "p.gguf").corpora == first.corpora
    for bad in ("today", "2026-13-01", ""):
        with pytest.raises(InputError, match="not a date"):
            coe.Model(tmp_path / "clock.gguf", date=bad)


def test_templates_see_the_same_date_every_day(text_of: Callable[[str], ModelText]) -> None:
    text = text_of("{{ strftime_now('%d %B %Y %H:%M') }}" + PLAIN).render_chat((Message("user", "a"),))
    assert text == "01 January 2026 00:00<user>a"


@pytest.mark.parametrize(
    ("opening", "prefill"),
    [
        ("<seed:think>\\n", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|start|>assistant", "<|channel|>final<|message|>"),
    ],
)
def test_prefills_close_thinking_in_all_its_spellings(
    text_of: Callable[[str], ModelText], opening: str, prefill: str
) -> None:
    text = text_of(PLAIN + "{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}")
    assert text.reply_prefill.rstrip().endswith(prefill)
    assert text.thinks == ""


def test_a_thinking_block_that_cannot_be_closed_is_reported(text_of: Callable[[str], ModelText]) -> None:
    text = text_of(PLAIN + "{% if add_generation_prompt %}<<ponder-thinking>>{% endif %}")
    assert text.thinks == "<<ponder-thinking>>"
