"""Generation with its routers watched, beside generation without, and beside llama-bench."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np

import coe_native as coe
from benchmarks.profiling import WINDOW, bare_contexts, output_of, repacking
from benchmarks.side_by_side import Comparison, Measure, Target
from coe_native.live.llama_cpp_python.app import placed
from coe_native.llama.generation import Prompt, generate_all
from coe_native.llama.options import Placement
from coe_native.routing.stats import STATS

N_TOKENS = 128
"""Generated in each run."""

TARGET = Target(0.97, True)

AT_ONCE = 8
"""Answers side by side. No target: how many experts they share depends on the model."""


def comparisons(parent: Path, tools: Path | None, threads: int) -> Iterator[Comparison]:
    """`tools`: the directory of llama.cpp's programs."""
    yield from at_once(parent, threads)
    with bare_contexts(parent, threads) as (plain, tapped):
        if tools is not None:
            yield Comparison(
                f"generate {N_TOKENS} tokens, watched",
                "tokens/s",
                lambda: one_by_one(tapped),
                f"llama-bench -n {N_TOKENS}",
                llama_bench(tools, parent, threads),
                TARGET,
            )
        yield Comparison(
            "the same",
            "tokens/s",
            lambda: one_by_one(tapped),
            "no callback",
            lambda: one_by_one(plain),
            TARGET,
        )
    for stats in STATS:
        with llamas(parent, threads, stats) as (unwatched, watched):
            for what, measure in (("read", reading), ("write", writing)):
                yield Comparison(
                    f"an attached Llama, {stats}: {what}",
                    "tokens/s",
                    measure(watched),
                    "a Llama as it is",
                    measure(unwatched),
                    TARGET,
                )


def at_once(parent: Path, threads: int) -> Iterator[Comparison]:
    """Several answers side by side, beside one after the other, with one loaded model."""
    options = coe.ModelOptions(n_ctx=AT_ONCE * WINDOW, n_sequences=AT_ONCE, n_threads=threads)
    with coe.Model(parent, options) as model:
        numbers = np.random.default_rng(2)
        prompts = [
            Prompt(numbers.integers(5, model.n_vocab, WINDOW // 8).astype(np.int32), seed)
            for seed in range(AT_ONCE)
        ]

        def measure(n_at_once: int) -> float:
            started, n_tokens = time.monotonic(), 0
            for first in range(0, AT_ONCE, n_at_once):
                for _, answer in generate_all(model, prompts[first : first + n_at_once], max_tokens=N_TOKENS):
                    n_tokens += answer.n_tokens
            return n_tokens / (time.monotonic() - started)

        yield Comparison(
            f"{AT_ONCE} answers of {N_TOKENS} tokens at once",
            "tokens/s",
            lambda: measure(AT_ONCE),
            "one at a time",
            lambda: measure(1),
        )


def llama_bench(tools: Path, model: Path, threads: int) -> Measure:
    line = [
        *(tools / "llama-bench", "-m", model, "-p", 0, "-n", N_TOKENS, "-t", threads, "-r", 1, "-o", "json"),
        *repacking("--repack", 0),
    ]
    return lambda: float(json.loads(output_of(list(map(str, line))))[0]["avg_ts"])


def one_by_one(context: int) -> float:
    """Tokens a second, each in a decode of its own, as llama-bench does it."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    token = (llama_cpp.llama_token * 1)()
    started = time.monotonic()
    for i in range(N_TOKENS):
        token[0] = 1 + i % 200
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)):
            raise SystemExit("llama.cpp cannot decode")
        llama_cpp.llama_synchronize(context)
    return N_TOKENS / (time.monotonic() - started)


@contextlib.contextmanager
def llamas(parent: Path, threads: int, stats: str) -> Iterator[tuple[llama_cpp.Llama, llama_cpp.Llama]]:
    """One as it is, and one attached."""
    options = {
        "n_ctx": 2 * WINDOW,
        "n_gpu_layers": -1,
        "n_threads": threads,
        "n_threads_batch": threads,
        "verbose": False,
    }
    with placed(Placement()):
        pair = [llama_cpp.Llama(str(parent), **options) for _ in range(2)]
    with coe.attach(pair[1], stats=stats):
        yield pair[0], pair[1]
    for llama in pair:
        llama.close()


def reading(llama: llama_cpp.Llama) -> Measure:
    """A prompt of a window, again each time."""
    tokens = np.random.default_rng(1).integers(5, llama.n_vocab(), WINDOW).tolist()

    def measure() -> float:
        llama.reset()
        started = time.monotonic()
        llama.eval(tokens)
        llama_cpp.llama_synchronize(llama.ctx)
        return WINDOW / (time.monotonic() - started)

    return measure


def writing(llama: llama_cpp.Llama) -> Measure:
    """The likeliest tokens behind a short prompt, with all that llama-cpp-python does for each."""

    def measure() -> float:
        generated = llama.generate([2, 10, 11, 12], temp=0.0)
        next(generated)
        started = time.monotonic()
        for _ in range(N_TOKENS):
            next(generated)
        return N_TOKENS / (time.monotonic() - started)

    return measure
