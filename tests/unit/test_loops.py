"""Loops in answers: planted ones are found, and human text and code have none."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe_native.evaluation.attempts import Attempt
from coe_native.evaluation.loops import COPIES, find_loop, loop_rates, most_looping, with_loop
from coe_native.recipes import demo

KINDS = ("python", "cpp", "prose")
ENDINGS = ("", " ", "\n", "\n\n\n", "  \t\n")


@cache
def texts(kind: str) -> list[str]:
    """Return the texts of one of the demo's test sets, which a human wrote."""
    return [str(document.content) for document in demo.corpus(kind, "test").documents]


@cache
def tokens(kind: str) -> list[str]:
    """Return about the tokens of a test set: words, numbers and signs, with the blanks before them."""
    return re.findall(r"\s*(?:[^\W\d]{1,12}|\d{1,3}|[^\w\s]{1,2}|_+)", "\n".join(texts(kind)))


def planted(rng: random.Random, period: int) -> tuple[str, str]:
    """Return human text that ends in a loop of some tokens, cut off within a copy, and the loop's unit."""
    kind = rng.choice(KINDS)
    everything, found = "\n".join(texts(kind)), tokens(kind)
    at = rng.randrange(len(found) - period)
    unit = "".join(found[at : at + period])
    begin = rng.randrange(len(everything) - 3000)
    n_copies = rng.randint(COPIES, COPIES + 5)
    least = 40 if any(character.isalpha() for character in unit) else 80
    n_copies = max(n_copies, -(-least // len(unit)))
    cut = rng.randrange(len(unit))
    return everything[begin : begin + rng.randrange(3000)] + unit * n_copies + unit[:cut], unit


def planted_loops(n: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(5)
    for number in range(n):
        yield planted(rng, 1 + number % 200)


def test_planted_loops_of_one_to_two_hundred_tokens_are_found() -> None:
    loops = [(unit, find_loop(text)) for text, unit in planted_loops(1000)]
    found = sum(loop is not None for _, loop in loops)
    assert found >= 0.99 * len(loops)
    # A unit may itself repeat a shorter one; the loop is never longer than what was planted.
    assert all(loop is None or len(loop.piece) <= len(unit) for unit, loop in loops)


@settings(max_examples=150, deadline=None)
@given(
    unit=st.lists(
        st.sampled_from(["a", "b", " the", " loop", "\n", "    ", "=", "1", "é", "→"]), min_size=1, max_size=200
    )
    .map("".join)
    .filter(lambda unit: any(character.isalpha() for character in unit)),
    n_copies=st.integers(COPIES, 8),
    cut=st.floats(0, 1, exclude_max=True),
    start=st.integers(0, 5000),
    ending=st.sampled_from(ENDINGS),
)
def test_any_planted_loop_is_found_wherever_it_is_cut(
    unit: str, n_copies: int, cut: float, start: int, ending: str
) -> None:
    copies = max(n_copies, -(-40 // len(unit)) + 1)
    text = texts("prose")[0][:start] + unit * copies + unit[: int(cut * len(unit))]
    text += "" if text[-1].isspace() else ending
    loop = find_loop(text)
    assert loop is not None
    assert len(loop.piece) <= len(unit)
    assert len(loop.piece) * COPIES <= loop.n_characters
    body = text if text.endswith(loop.piece) else text.rstrip()
    assert body.endswith(loop.piece * COPIES)


@pytest.mark.parametrize("kind", KINDS)
def test_human_text_and_code_cut_anywhere_have_no_loops(kind: str) -> None:
    rng = random.Random(7)
    everything = texts(kind)
    cuts = [(rng.choices(everything, [len(text) for text in everything])[0], rng.random()) for _ in range(2000)]
    alarms = sum(find_loop(text[: 1 + int(share * len(text))][-3000:]) is not None for text, share in cuts)
    assert alarms < 0.005 * len(cuts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n" * 20,
        "a" * 39,
        "abc " * 2,
        "-" * 79,
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 3 |\n| 2 | 3 |\n",
        "0, " * 26,
        "The end.\n\nThe end.\n\n",
        "=" * 60 + "\nTitle\n" + "=" * 60,
        "".join(f"for {name} in range(10):\n    print({name})\n" for name in "abc"),
        "again and again " * 40 + "but then it ends.",
        "".join(f"{number}. the same step\n" for number in range(50)),
    ],
)
def test_what_is_no_loop_by_the_definition(text: str) -> None:
    assert find_loop(text) is None


@pytest.mark.parametrize(
    ("text", "piece", "n_characters"),
    [
        ("x = " + "a" * 40, "a", 40),
        ("So:\t" + "wait, " * 10, "wait, ", 60),
        ("So:\t" + "wait, " * 10 + "wai", "t, wai", 63),
        ("ab" * 20, "ab", 40),
        ("-" * 80, "-", 80),
        ("abcdefghijklmn" * 3, "abcdefghijklmn", 42),
        ("I think so.\n" * 30 + "\n\n\n", "\nI think so.", 359),
    ],
)
def test_the_shortest_piece_is_returned(text: str, piece: str, n_characters: int) -> None:
    loop = find_loop(text)
    assert loop is not None
    assert (loop.piece, loop.n_characters) == (piece, n_characters)


def test_a_very_long_answer_is_looked_at_quickly() -> None:
    """Its tail only; the worst texts are those that nearly repeat themselves."""
    import time

    started = time.monotonic()
    for text in ("ab" * 500_000, "a" * 60_000 + "b" + "a" * 60_000, "abcab" * 99_999 + "c"):
        find_loop(text)
    assert time.monotonic() - started < 5
    loop = find_loop("x" * 1_000_000)
    assert loop is not None
    assert loop.piece == "x"


def test_an_attempt_says_whether_it_loops() -> None:
    assert with_loop(Attempt("a", "b " * 40)).period == 2
    looked_at = with_loop(Attempt("a", "fine"))
    assert (looked_at.looping, looked_at.period) == (False, None)


def test_rates_count_how_answers_end() -> None:
    attempts = [
        Attempt("a", "", tokens=5, ended="length", looping=True),
        Attempt("a", "", tokens=6, ended="context", looping=False),
        Attempt("b", "", tokens=7, ended="end", looping=False),
        Attempt("b", "", looping=True),  # of another tool, which does not say why it ended
    ]
    rates = loop_rates(attempts)
    assert (rates.looping.count, rates.looping.total) == (2, 4)
    assert (rates.unfinished.count, rates.unfinished.total) == (1, 3)
    assert (rates.truncated.count, rates.truncated.total) == (1, 3)
    assert rates.tokens == 18


def test_the_prompts_with_the_largest_share_of_loops_come_first() -> None:
    outcomes = {"never": "---", "once": "+--", "always": "++", "often": "+++-", "every time": "+++"}
    attempts = [
        Attempt(name, "", sample=number, looping=outcome == "+")
        for name, each in outcomes.items()
        for number, outcome in enumerate(each)
    ]
    assert most_looping(attempts) == [("every time", 3, 3), ("always", 2, 2), ("often", 3, 4), ("once", 1, 3)]


def test_the_demo_has_texts_enough() -> None:
    assert all(sum(map(len, texts(kind))) > 80_000 for kind in KINDS)
