"""Generated text: tokens, sampling, prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.bad_files import PIECES, byte_tokenizer
from support.problems import ADD
from support.random_models import write_random_model

import coe_native as coe
from coe_native.evaluation.tasks import Writer
from coe_native.llama.generation import Generation, Prompt, Sampling, generate, generate_all
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
        assert filled.ended in ("context", "end")
        assert filled.n_tokens <= 127
        with pytest.raises(coe.InputError, match="context"):
            generate(model, model.tokenize("word " * 200))


@pytest.mark.parametrize("row", ["qwen3moe", "gemma4", "lfm2moe"])
def test_answers_do_not_depend_on_those_beside_them(row: str, tmp_path: Path) -> None:
    """Nor on their order, on how many run at once, or on whether one had to wait in a full context.

    In F32: quantised activations turn the last bit of a sum into a step, which draws another token now and then.
    """
    path = tmp_path / "model.gguf"
    write_random_model(path, row, n_vocab=len(PIECES), extra_metadata=byte_tokenizer())
    header = coe.MoeModel(path)
    kept = dict.fromkeys(header.blocks, tuple(range(8)))
    mask = coe.ExpertMask(header.architecture, header.fingerprint, header.n_experts, 8, kept)
    prompts = [Prompt(np.arange(1, 8 + 2 * seed, dtype=np.int32) % 90, seed) for seed in range(6)]

    def written(n_sequences: int, n_ctx: int, order: int = 1, *, masked: bool = False) -> list[Generation]:
        with coe.Model(path, n_ctx=n_ctx, n_batch=64, n_sequences=n_sequences, f32_kv=True) as model:
            if masked:
                model.apply(mask)
            sampling = Sampling(temperature=1.0)
            answers = dict(generate_all(model, prompts[::order], sampling=sampling, max_tokens=40))
        return [answers[index] for index in range(len(prompts))][::order]

    alone, masked = written(1, 512), written(1, 512, masked=True)
    assert len({answer.text for answer in alone + masked}) == 2 * len(prompts)
    for n_sequences, n_ctx in ((3, 512), (6, 1024), (8, 90)):
        assert written(n_sequences, n_ctx) == alone, (n_sequences, n_ctx)
    assert written(3, 512, -1) == alone
    assert written(6, 512, masked=True) == masked


def test_answers_come_as_they_end_and_say_why() -> None:
    with coe.Model(demo.MODEL, n_ctx=40, n_sequences=2) as model:
        told: list[int] = []
        tokens = model.tokenize("def first(values):")
        long, short = Prompt(tokens), Prompt(np.repeat(tokens[-1:], 30))
        found = list(generate_all(model, [long, short], max_tokens=20, progress=told.append))
        assert sorted(index for index, _ in found) == [0, 1]
        by_index = dict(found)
        assert (by_index[0].ended, by_index[0].n_tokens) == ("length", 20)
        assert (by_index[1].ended, by_index[1].n_tokens) == ("context", 10)
        assert told == sorted(told)
        assert told[-1] == 30
        assert list(generate_all(model, [])) == []
        with pytest.raises(coe.InputError, match="context"):
            generate_all(model, [long, Prompt(np.zeros(40, np.int32))])


def test_a_writer_is_identified_by_its_options(model_file: Callable[[str, str], Path]) -> None:
    task = ADD.task()
    with coe.Model(demo.MODEL, n_ctx=256, n_sequences=2) as model:
        raw = Writer(model, Sampling(seed=3), max_tokens=20, raw=True)
        first, again = (list(raw.write([(task, 0)])) for _ in range(2))
        assert first == again
        (_, _, one), (_, _, other) = sorted(raw.write([(task, 0), (task, 1)]), key=lambda each: each[1])
        assert one == first[0][2] != other
        others = {
            Writer(model, Sampling(seed=4), max_tokens=20, raw=True).run([task]),
            Writer(model, Sampling(seed=3), max_tokens=21, raw=True).run([task]),
            Writer(model, Sampling(seed=3), max_tokens=20).run([task]),
            Writer(model, Sampling(seed=3), max_tokens=20, raw=True, thinking=True).run([task]),
            raw.run([task]),
            raw.run([task, replace(task, task_id="Test/1")]),
        }
        assert len(others) == 6
        assert raw.run([task]) == raw.run([task])
        with pytest.raises(coe.InputError, match=r"template.*--raw"):
            list(Writer(model).write([(task, 0)]))
    with (
        coe.Model(model_file("nomic-bert-moe", "F32"), n_ctx=64) as encoder,
        pytest.raises(coe.InputError, match=r"encoder|text|generate"),
    ):
        generate(encoder, np.array([1], np.int32))
