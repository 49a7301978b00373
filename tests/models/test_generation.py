"""Generated text: tokens, sampling, prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.problems import ADD

import coe_native as coe
from coe_native.evaluation.humaneval import Attempt, Solver
from coe_native.llama.generation import Generation, Sampling, generate
from coe_native.recipes import demo


def test_greedy_generation_takes_the_likeliest_tokens() -> None:
    """Against logits of the whole text, again for each token."""
    with coe.Model(demo.MODEL, n_ctx=64, n_batch=16) as model:
        prompt = model.tokenize("def first(values):\n")
        told: list[int] = []
        sampling = Sampling(temperature=0, repeat_penalty=1.0)
        written = generate(model, prompt, sampling=sampling, max_tokens=12, progress=told.append)
        tokens = prompt.tolist()
        for _ in range(12):
            tokens.append(int(model.logits(tokens)[-1].argmax()))
        expected = b"".join(model.text.token_text(token) for token in tokens[len(prompt) :]).decode()
        assert written == Generation(expected, 12, "length")
        assert told == list(range(1, 13))
        stop = expected[5:8]
        stopped = generate(model, prompt, sampling=sampling, max_tokens=12, stop=["never there", stop])
        assert (stopped.text, stopped.ended) == (expected[: expected.index(stop)], "stop")


def test_sampling_follows_its_seed_and_penalises_repetition() -> None:
    with coe.Model(demo.MODEL, n_ctx=128) as model:
        prompt = model.tokenize("The")
        drawn = [
            generate(model, prompt, sampling=Sampling(temperature=1.0, seed=seed), max_tokens=30).text
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        repeated, varied = (
            generate(
                model, prompt, sampling=Sampling(temperature=0, repeat_penalty=penalty), max_tokens=100
            ).text.split()
            for penalty in (1.0, 1.5)
        )
        assert len(set(varied)) > len(set(repeated))
        filled = generate(model, prompt, max_tokens=10**6)
        assert filled.ended in ("length", "end")
        assert filled.n_tokens <= 127
        with pytest.raises(coe.InputError, match="context"):
            generate(model, model.tokenize("word " * 200))


def test_a_solver_is_identified_by_its_options(model_file: Callable[[str, str], Path]) -> None:
    with coe.Model(demo.MODEL, n_ctx=256) as model:
        raw = Solver(model, Sampling(seed=3), max_tokens=20, raw=True)
        first, again = raw(ADD), raw(ADD)
        assert first == again
        others = {
            Solver(model, Sampling(seed=4), max_tokens=20, raw=True).run([ADD]),
            Solver(model, Sampling(seed=3), max_tokens=21, raw=True).run([ADD]),
            Solver(model, Sampling(seed=3), max_tokens=20).run([ADD]),
            raw.run([ADD]),
            raw.run([ADD, replace(ADD, task_id="Test/1")]),
        }
        assert len(others) == 5
        assert raw.run([ADD]) == raw.run([ADD])
        with pytest.raises(coe.InputError, match=r"template.*--raw"):
            Solver(model)(ADD)
    with (
        coe.Model(model_file("nomic-bert-moe", "F32"), n_ctx=64) as encoder,
        pytest.raises(coe.InputError, match=r"encoder|text|generate"),
    ):
        generate(encoder, np.array([1], np.int32))
    assert Attempt("a", "b", 1, "end", "r").passed is None
