"""`attach`: what a Llama generates does not change, and what its routers choose is counted."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as low_level
import numpy as np
import pytest
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from support.bare_host import BareHost
from support.llamas import load
from support.masks import unused_experts
from support.random_models import write_random_model

import coe_native as coe
from coe_native._native import core
from coe_native.live.llama_cpp_python import watched
from coe_native.recipes import demo

ModelFile = Callable[[str, str], Path]


def tokens_of(llama: Llama, prompt: list[int], n_tokens: int, **options: Any) -> list[int]:
    """What it generates, and after one token less it stops: the last is not run."""
    found = []
    for token in llama.generate(prompt, **options):
        found.append(int(token))
        if len(found) == n_tokens:
            return found
    raise AssertionError("generation ended by itself")


def use(llama: Llama) -> Iterator[Any]:
    """A program's life with a Llama: completions, the same again, chat, streams, seeds, a grammar, by hand."""
    yield llama("def add(a, b):", max_tokens=24, temperature=0.9, seed=11)["choices"][0]["text"]
    yield llama("def add(a, b):", max_tokens=24, temperature=0.9, seed=11)["choices"][0]["text"]
    yield llama("def add(a, b):\n    return", max_tokens=8, temperature=0.0)["choices"][0]["text"]
    messages = [{"role": "user", "content": "Write a loop."}]
    yield llama.create_chat_completion(messages, max_tokens=16, seed=3)["choices"][0]["message"]["content"]
    stream = llama.create_completion("import ", max_tokens=12, stream=True, seed=5)
    yield [chunk["choices"][0]["text"] for chunk in stream]
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    yield llama("Is it?", max_tokens=4, grammar=grammar)["choices"][0]["text"]
    llama.reset()
    llama.eval(llama.tokenize(b"x = ["))
    yield llama.sample(temp=0.0)


def test_attaching_changes_no_generated_text() -> None:
    plain = load(demo.MODEL)
    watched = load(demo.MODEL)
    with coe.attach(watched) as capture:
        assert list(use(watched)) == list(use(plain))
        assert capture.prompts.n_tokens > 30
        assert capture.generated.n_tokens > 80
        whole = capture.profile
    # As it was before, and what was counted stays.
    assert list(use(watched)) == list(use(plain))
    assert type(watched) is Llama
    assert not watched.context_params.cb_eval
    np.testing.assert_array_equal(capture.profile.histograms, whole.histograms)


@pytest.mark.parametrize("family", ["qwen3moe", "gpt-oss", "deepseek2", "qwen35moe", "granitehybrid"])
def test_counts_of_prompts_and_of_answers(tmp_path: Path, documents: list[list[int]], family: str) -> None:
    """Against a profile of the same tokens: prompts by the token, but for layers whose rows are left out; answers,
    which run one at a time, too."""
    path = tmp_path / "model.gguf"
    write_random_model(path, family)
    prompt = documents[1][:60]
    plain = load(path, flash_attn=True)  # as in a Model
    answer = tokens_of(plain, prompt, 20, temp=0.0)
    llama = load(path, flash_attn=True)
    capture = coe.attach(llama, stats="contribution")
    assert tokens_of(llama, prompt, 20, temp=0.0) == answer
    prompts, generated = capture.prompts, capture.generated
    assert prompts.n_tokens == 60
    assert set(prompts.layer_tokens) <= {60, 1}
    assert generated.layer_tokens == (19,) * len(generated.layers)
    with coe.Model(path, n_ctx=128, n_batch=128, n_threads=2) as model:
        of_prompt = coe.profile(model, [prompt])
        of_both = coe.profile(model, [prompt + answer[:-1]])
    assert prompts.outputs is not None
    assert of_prompt.outputs is not None
    assert capture.profile.outputs is not None
    assert of_both.outputs is not None
    for index, seen in enumerate(prompts.layer_tokens):
        if seen == 60:
            np.testing.assert_array_equal(prompts.histograms[index], of_prompt.histograms[index])
            np.testing.assert_allclose(prompts.weight_sum[index], of_prompt.weight_sum[index], rtol=1e-5)
            # One at a time and all at once differ in the last bits, which decide between near-ties.
            moved = np.abs(capture.profile.histograms[index] - of_both.histograms[index]).sum() / 2
            assert moved <= 0.01 * of_both.histograms[index].sum()
            for name in ("norm_sum", "weighted_norm_sum"):
                found, expected = (getattr(p.outputs, name)[index] for p in (prompts, of_prompt))
                np.testing.assert_allclose(found, expected, rtol=1e-5)
                found, expected = (getattr(p.outputs, name)[index] for p in (capture.profile, of_both))
                assert np.abs(found - expected).sum() <= 0.02 * expected.sum()


def test_prompts_and_generated_tokens_are_counted_apart(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    with coe.attach(llama) as capture:

        def counted() -> tuple[int, int]:
            found = capture.prompts.n_tokens, capture.generated.n_tokens
            capture.reset()
            return found

        prompt = list(range(1, 31))
        answer = tokens_of(llama, prompt, 5, temp=0.0)
        assert counted() == (30, 4)
        # The next turn finds all but the last token of the answer in memory.
        tokens_of(llama, [*prompt, *answer, 7, 8], 3, temp=0.0)
        assert counted() == (3, 2)
        # By hand, too; and a prompt longer than a batch.
        llama.reset()
        llama.eval(list(range(100)))
        token = llama.sample(temp=0.0)
        llama.eval([token])
        llama.eval([llama.sample(temp=0.0)])
        assert counted() == (100, 2)
        llama.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=4)
        tokens_of(llama, [1, 2, 3, 1, 2, 3, 1, 2], 6, temp=0.0)
        assert counted() == (8, 5)


class _Drafts:
    """Drafts the right tokens up to some number, then wrong ones."""

    def __init__(self, answer: list[int], n_prompt: int, n_right: int) -> None:
        self.answer, self.n_prompt, self.n_right = answer, n_prompt, n_right

    def __call__(self, input_ids: Any, /, **_: Any) -> Any:
        at = len(input_ids) - self.n_prompt
        return np.array([*self.answer[at : at + self.n_right], 1, 2, 3], np.intc)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n_right", [0, 1, 3, 20])
@pytest.mark.parametrize("family", ["qwen3moe", "gemma4"])
def test_drafted_tokens_count_as_if_they_had_been_generated(
    model_file: ModelFile,
    profile_of: Callable[[str, str], coe.RoutingProfile],
    family: str,
    n_right: int,
    masked: bool,
) -> None:
    """Rejected drafts do not count, nor do accepted ones after the end of the answer."""
    prompt = list(range(40, 60))
    path = model_file(family, "F32")

    def counted(llama: Llama) -> tuple[list[int], list[coe.RoutingProfile]]:
        capture = coe.attach(llama, stats="contribution")
        if masked:
            capture.apply(unused_experts(profile_of(family, "F32"), 12))
        answer = tokens_of(llama, prompt, 12, temp=0.0)
        return answer, [capture.prompts, capture.generated, capture.masked]

    plain, expected = counted(load(path, logits_all=True))
    drafted = load(path, logits_all=True, draft_model=_Drafts(plain, len(prompt), n_right))
    answer, found = counted(drafted)
    assert answer == plain
    for profile, like in zip(found, expected, strict=True):
        assert profile.layer_tokens == like.layer_tokens
        differences = np.abs(profile.histograms - like.histograms).sum()
        assert differences <= 0.01 * like.histograms.sum(), "batches of other sizes may break near ties"
        assert profile.outputs is not None
        assert like.outputs is not None
        norms = np.abs(profile.outputs.norm_sum - like.outputs.norm_sum).sum()
        assert norms <= 0.02 * like.outputs.norm_sum.sum()
    assert sum(profile.n_tokens for profile in found) == len(prompt) + 11


def test_embeddings_are_prompts(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"), embedding=True)
    capture = coe.attach(llama)
    llama.tokenize = lambda *_, **__: [1, 2, 3, 4, 5]  # the model has no tokenizer
    llama.embed("text")
    assert (capture.prompts.n_tokens, capture.generated.n_tokens) == (5, 0)


@pytest.mark.parametrize("family", ["qwen3moe", "gemma4", "qwen35moe"])
def test_attaching_in_the_middle_of_a_conversation(tmp_path: Path, family: str) -> None:
    """What the context holds is carried over, in both directions, and is not counted again."""
    path = tmp_path / "model.gguf"
    write_random_model(path, family)
    prompt = [5, 9, 2, 77, 31, 8] * 5

    def talk(llama: Llama, meanwhile: Callable[[], None]) -> list[list[int]]:
        answers = [tokens_of(llama, prompt, 6, temp=0.0)]
        for _ in range(2):
            meanwhile()
            prompt_now = [*prompt, *(token for answer in answers for token in answer), 3]
            answers.append(tokens_of(llama, prompt_now, 6, temp=0.0))
        return answers

    expected = talk(load(path), lambda: None)
    llama = load(path)
    captures: list[coe.Capture] = []

    def change() -> None:
        if captures:
            captures[0].detach()
        else:
            captures.append(coe.attach(llama))

    assert talk(llama, change) == expected
    assert captures[0].generated.n_tokens == 5
    if family != "qwen35moe":  # a recurrent state cannot be cut back, so its prompt is run anew
        assert captures[0].prompts.n_tokens == 2


@pytest.mark.parametrize("family", ["qwen3moe", "gemma4", "qwen35moe"])
def test_attaching_between_a_token_and_the_next_by_hand(tmp_path: Path, family: str) -> None:
    """Somebody may be about to sample."""
    path = tmp_path / "model.gguf"
    write_random_model(path, family)

    def by_hand(llama: Llama, between: Callable[[int], None]) -> list[int]:
        llama.eval([5, 9, 2, 77, 31, 8] * 3)
        tokens = []
        for step in range(4):
            between(step)
            tokens.append(int(llama.sample(temp=0.0)))
            llama.eval(tokens[-1:])
        return tokens

    expected = by_hand(load(path), lambda _: None)
    llama = load(path)
    captures: list[coe.Capture] = []

    def change(step: int) -> None:
        if step == 1:
            captures.append(coe.attach(llama))
        if step == 3:
            captures[0].detach()

    assert by_hand(llama, change) == expected
    assert captures[0].profile.n_tokens == 2


def test_a_llama_that_is_closed_while_it_is_watched(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    with coe.attach(llama) as capture:
        tokens_of(llama, [1, 2, 3], 3, temp=0.0)
        llama.close()
    assert capture.profile.n_tokens == 5
    assert type(llama) is Llama


def test_a_live_mask_is_the_specialist(model_file: ModelFile, documents: list[list[int]], tmp_path: Path) -> None:
    path = model_file("qwen3moe", "F32")
    mask = unused_experts(coe.profile(path, documents, n_ctx=128, n_threads=1), 8)
    coe.prune(path, mask, tmp_path / "pruned.gguf")
    prompt = documents[3]
    unmasked = tokens_of(load(path), prompt, 12, temp=0.0)
    specialist = tokens_of(load(tmp_path / "pruned.gguf"), prompt, 12, temp=0.0)
    assert specialist != unmasked
    llama = load(path)
    with coe.attach(llama) as capture:
        assert tokens_of(llama, prompt, 12, temp=0.0) == unmasked
        before = capture.profile
        capture.apply(mask)
        assert tokens_of(llama, prompt, 12, temp=0.0) == specialist
        # Nothing of the unmasked model's memory is used, and the model's profile is not that of the specialist.
        assert capture.masked.n_tokens == len(prompt) + 11
        np.testing.assert_array_equal(capture.profile.histograms, before.histograms)
        for index, block in enumerate(capture.masked.layers):
            assert set(np.flatnonzero(capture.masked.counts[index])) <= set(mask.kept[block])
        capture.clear_mask()
        assert tokens_of(llama, prompt, 12, temp=0.0) == unmasked
        assert capture.profile.n_tokens == 2 * before.n_tokens
        capture.apply(mask)
        llama.set_cache(llama_cpp.LlamaRAMCache())
    # Its states are the specialist's.
    assert llama.cache is None
    assert tokens_of(llama, prompt, 12, temp=0.0) == unmasked


def test_the_callback_of_the_host_still_runs(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    asked = []

    @low_level.ggml_backend_sched_eval_callback
    def callback(_node: int, ask: bool, _data: int) -> bool:
        asked.append(ask)
        return not ask

    llama.context_params.cb_eval = callback
    with coe.attach(llama) as capture:
        asked.clear()
        tokens_of(llama, [1, 2, 3], 3, temp=0.0)
        assert capture.profile.n_tokens == 5
        assert len(asked) > 100
        assert all(asked)
    asked.clear()
    tokens_of(llama, [1, 2, 3], 3, temp=0.0)
    assert len(asked) > 100


def test_the_callback_of_the_host_is_kept_alive(model_file: ModelFile) -> None:
    """Where nothing but the Llama's own parameters refers to it, and nobody keeps the Capture."""
    llama = load(model_file("qwen3moe", "F32"))
    called = []
    llama.context_params.cb_eval = low_level.ggml_backend_sched_eval_callback(lambda *_: bool(called.append(1)))
    capture = coe.attach(llama)
    del capture
    gc.collect()
    # What is made now would take the place of what has gone.
    others = [low_level.ggml_backend_sched_eval_callback(lambda *_: 1 / 0) for _ in range(20)]
    called.clear()
    tokens_of(llama, [1, 2, 3], 3, temp=0.0)
    assert len(called) > 100
    assert len(others) == 20


def test_counts_can_be_read_during_generation(model_file: ModelFile) -> None:
    """From another thread, between two tokens: every layer has seen the same."""
    llama = load(model_file("deepseek2", "F32"))
    capture = coe.attach(llama)
    ended = threading.Event()
    uneven: list[tuple[int, ...]] = []

    def look() -> None:
        while not ended.is_set():
            seen = capture.generated.layer_tokens
            if len(set(seen)) > 1:
                uneven.append(seen)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        tokens_of(llama, [1, 2, 3], 150, temp=0.0)
    finally:
        ended.set()
        thread.join()
    assert not uneven
    assert capture.generated.n_tokens == 149


def test_counts_can_be_read_while_a_callback_waits(model_file: ModelFile) -> None:
    """A callback may wait for another thread that reads the counts."""
    llama = load(model_file("qwen3moe", "F32"))
    read = threading.Event()
    in_batch = threading.Event()

    @low_level.ggml_backend_sched_eval_callback
    def callback(_node: int, ask: bool, _data: int) -> bool:
        in_batch.set()
        assert read.wait(60)
        return not ask

    read.set()
    llama.context_params.cb_eval = callback
    with coe.attach(llama) as capture:
        tokens_of(llama, [1, 2, 3], 3, temp=0.0)
        read.clear()
        in_batch.clear()
        seen: list[int] = []

        def look() -> None:
            assert in_batch.wait(60)
            seen.append(capture.profile.n_tokens)
            read.set()

        thread = threading.Thread(target=look)
        thread.start()
        tokens_of(llama, [4, 5, 6], 2, temp=0.0)
        thread.join()
        assert seen == [5]
        assert capture.profile.n_tokens == 9


def test_detaching_from_another_thread_in_the_middle_of_an_answer(model_file: ModelFile) -> None:
    """At any moment, again and again: what is generated stays the same."""
    path = model_file("deepseek2", "F32")
    prompt, n_tokens = [3, 1, 4, 1, 5, 9, 2, 6] * 4, 40
    expected = tokens_of(load(path), prompt, n_tokens, temp=0.0)
    llama = load(path)
    for delay in range(12):
        capture = coe.attach(llama)
        thread = threading.Timer(delay * 0.004, capture.detach)
        thread.start()
        found = tokens_of(llama, prompt, n_tokens, temp=0.0)
        thread.join()
        assert found == expected
        assert type(llama) is Llama
        assert capture.profile.n_tokens <= len(prompt) + n_tokens
        llama.reset()


@pytest.mark.parametrize("use", ["eval", "sample", "reset", "save_state", "n_ctx"])
def test_calls_that_wait_for_detach_run_on_the_new_context(
    model_file: ModelFile, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    capture = coe.attach(llama)
    llama.eval([1, 2, 3])
    renewing, waiting = threading.Event(), threading.Event()
    renew = watched.renew_context

    def slow(*arguments: Any) -> None:
        renewing.set()
        waiting.wait(10)
        time.sleep(0.2)  # until the other thread waits for the lock
        renew(*arguments)

    monkeypatch.setattr(watched, "renew_context", slow)
    results: list[Any] = []

    def call() -> None:
        assert renewing.wait(10)
        waiting.set()
        arguments = ([4],) if use == "eval" else ()
        results.append(getattr(llama, use)(*arguments))

    thread = threading.Thread(target=call)
    thread.start()
    capture.detach()
    thread.join()
    assert len(results) == 1
    assert type(llama) is Llama
    assert capture.profile.n_tokens == 3


def test_a_generation_that_begins_after_detaching(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    expected = tokens_of(llama, [1, 2, 3], 4, temp=0.0)
    llama.reset()
    capture = coe.attach(llama)
    generation = llama.generate([1, 2, 3], temp=0.0)
    capture.detach()
    assert [int(next(generation)) for _ in range(4)] == expected
    assert capture.profile.n_tokens == 0


def test_a_host_that_reads_counts_in_its_callback_is_detached(model_file: ModelFile) -> None:
    """Detaching runs the last token again, with the host's callback, which waits for another thread here."""
    llama = load(model_file("qwen3moe", "F32"))
    captures: list[coe.Capture] = []

    @low_level.ggml_backend_sched_eval_callback
    def callback(_node: int, ask: bool, _data: int) -> bool:
        if captures and ask:
            reader = threading.Thread(target=lambda: captures[0].profile)
            reader.start()
            reader.join(30)
            assert not reader.is_alive()
        return not ask

    llama.context_params.cb_eval = callback
    captures.append(coe.attach(llama))
    llama.eval([1, 2, 3])
    captures[0].detach()
    assert captures[0].profile.n_tokens == 3
    captures.clear()


def test_masks_from_another_thread_wait_for_the_batch(model_file: ModelFile, documents: list[list[int]]) -> None:
    path = model_file("qwen3moe", "F32")
    mask = unused_experts(coe.profile(path, documents, n_ctx=128, n_threads=1), 8)
    llama = load(path)
    with coe.attach(llama) as capture:
        ended = threading.Event()

        def change() -> None:
            while not ended.is_set():
                capture.apply(mask)
                capture.clear_mask()

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for start in range(0, 200, 20):
                llama.reset()
                llama.eval(list(range(start, start + 20)))
        finally:
            ended.set()
            thread.join()
        for index, block in enumerate(capture.masked.layers):
            assert set(np.flatnonzero(capture.masked.counts[index])) <= set(mask.kept[block])


def test_a_callback_of_the_host_cannot_detach_in_a_batch(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    captures: list[coe.Capture] = []
    refusals: list[str] = []

    @low_level.ggml_backend_sched_eval_callback
    def callback(_node: int, ask: bool, _data: int) -> bool:
        if captures and not refusals:
            try:
                captures[0].detach()
            except coe.CoeError as error:
                refusals.append(str(error))
        return not ask

    llama.context_params.cb_eval = callback
    captures.append(coe.attach(llama))
    tokens_of(llama, [1, 2, 3], 3, temp=0.0)
    assert "batch" in refusals[0]
    assert captures[0].profile.n_tokens == 5
    captures.pop().detach()


def test_forgetting_both_frees_the_model(model_file: ModelFile) -> None:
    llama = load(model_file("qwen3moe", "F32"))
    capture = coe.attach(llama)
    gone = weakref.ref(llama)
    gc.disable()
    try:
        del llama, capture
        assert gone() is None
    finally:
        gc.enable()
    # Whatever is forgotten first, the callback lives as long as the context.
    llama = load(model_file("qwen3moe", "F32"))
    coe.attach(llama)
    gc.collect()
    tokens_of(llama, [1, 2, 3], 3, temp=0.0)


def test_wrong_uses_are_refused(model_file: ModelFile, documents: list[list[int]]) -> None:
    path = model_file("qwen3moe", "F32")
    other = unused_experts(coe.profile(model_file("olmoe", "F32"), documents, n_ctx=128, n_threads=1), 8)
    mine = unused_experts(coe.profile(path, documents, n_ctx=128, n_threads=1), 8)
    llama = load(path)
    with coe.attach(llama) as capture:
        with pytest.raises(coe.InputError, match="already"):
            coe.attach(llama)
        with pytest.raises(coe.InputError, match="model"):
            capture.apply(other)
        llama.set_cache(llama_cpp.LlamaRAMCache())
        with pytest.raises(coe.InputError, match="cache"):
            capture.apply(mine)
        llama.set_cache(None)
        capture.apply(mine)
    with pytest.raises(coe.CoeError, match="attached"):
        capture.apply(mine)


def test_a_llama_that_contradicts_its_file_is_refused_unchanged(model_file: ModelFile) -> None:
    """Told to choose two experts, where the header says four."""
    path = model_file("qwen3moe", "F32")
    overrides = {"qwen3moe.expert_used_count": 2}
    expected = tokens_of(load(path, kv_overrides=overrides), [1, 2, 3], 8, temp=0.0)
    llama = load(path, kv_overrides=overrides)
    begun = tokens_of(llama, [1, 2, 3], 4, temp=0.0)
    with pytest.raises(coe.CoeError, match=r"\b2\b.*block 0.*\b4\b"):
        coe.attach(llama)
    assert begun == expected[:4]
    gc.collect()
    contexts = [found for found in gc.get_objects() if isinstance(found, watched._WatchedContext)]
    assert not [context for context in contexts if context.ctx is not None and context.model is llama._model]
    assert tokens_of(llama, [1, 2, 3, *begun], 4, temp=0.0) == expected[4:]
    assert type(llama) is Llama


def test_bare_callbacks_see_what_attached_ones_see(model_file: ModelFile, documents: list[list[int]]) -> None:
    """The same through llama.cpp's own functions and the address of the callback."""
    path = model_file("olmoe", "F32")
    live = core.LiveProfiler([0, 1, 2], 16, [4, 4, 4], 2)
    assert ctypes.c_void_p(live.callback).value
    host = BareHost(path, live.callback, live.user_data)
    host.run(documents[0])
    live.select(1)
    host.run(documents[3])
    host.close()
    for part, document in enumerate((documents[0], documents[3])):
        histograms, _, _, tokens, norms = live.counts()[part]
        assert norms is None
        expected = coe.profile(path, [document], n_ctx=128, n_batch=128, n_threads=1)
        np.testing.assert_array_equal(histograms, expected.histograms)
        assert tokens == [len(document)] * 3
    with pytest.raises(ValueError, match="part"):
        live.select(2)
