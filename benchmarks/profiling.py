"""Profiling beside llama.cpp's own prompt processing, its importance matrix, and hooks in transformers."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

import coe_native as coe
from benchmarks.side_by_side import Comparison, Measure, Target
from benchmarks.starting import command
from coe_native._native import core
from coe_native.profiling.run import DOCUMENTS_AT_ONCE

WINDOW = 512
SHORT = (30, 120)
"""Tokens of the shortest and longest of the short documents."""

_QUIET = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)

TEXT = Path(coe.__file__).parent / "demo_data" / "python.profile.jsonl"


def comparisons(
    parent: Path, directory: Path, tools: Path | None, windows: int, threads: int
) -> Iterator[Comparison]:
    """`tools`: the directory of llama.cpp's programs. Loading is counted nowhere."""
    text, tokens = directory / "text.txt", directory / "tokens.npy"
    write_text(parent, windows, text, tokens)
    if tools is not None:
        ours = from_command_line(parent, tokens, threads)
        yield Comparison(
            "profile, documents of 512 tokens",
            "tokens/s",
            ours,
            "llama-bench -p 512",
            llama_bench(tools, parent, windows, threads),
            Target(1.0, True),
        )
        theirs = llama_imatrix(tools, parent, text, windows, threads, directory)
        yield Comparison(
            "profile, the same tokens",
            "tokens/s",
            ours,
            "llama-imatrix --no-ppl",
            theirs,
            Target(1.25, True),
        )
        yield Comparison(
            "profile with an importance matrix, the same tokens",
            "tokens/s",
            from_command_line(parent, tokens, threads, "--imatrix", directory / "our-imatrix.gguf"),
            "llama-imatrix --no-ppl",
            theirs,
            Target(1.0, True),
        )
    yield from batches(parent, np.load(tokens), threads)
    with bare_contexts(parent, threads) as (plain, tapped):
        long = np.load(tokens)
        yield Comparison(
            "the tap alone",
            "s",
            lambda: decode(tapped, long),
            "no callback",
            lambda: decode(plain, long),
            Target(1.01, False),
        )


def write_text(parent: Path, windows: int, text: Path, tokens: Path) -> None:
    """Text of `windows` windows and more, and its tokens as that many documents [window, token]."""
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    text.write_text("\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
    with coe.Model(parent, n_ctx=8, n_batch=8) as model:
        ids = model.tokenize(text.read_text(encoding="utf-8"))
    if len(ids) < (windows + 1) * WINDOW:
        raise SystemExit(f"{TEXT}: has {len(ids)} tokens, too few for {windows} windows")
    np.save(tokens, ids[: windows * WINDOW].reshape(windows, WINDOW))


def output_of(line: list[str]) -> str:
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


def from_command_line(model: Path, tokens: Path, threads: int, *more: object) -> Measure:
    out = tokens.with_suffix(".profile.gguf")
    line = command(
        *("profile", model, "-c", tokens, "-o", out, "--stats", "routing"),
        *("--threads", threads, "--force", "--json", *more),
    )
    return lambda: float(json.loads(output_of(line))["tokens_per_second"])


def llama_bench(tools: Path, model: Path, windows: int, threads: int) -> Measure:
    """Averaged over its own repetitions, after its own warm-up."""
    line = [
        *(tools / "llama-bench", "-m", model, "-p", WINDOW, "-n", 0, "-ub", WINDOW, "-t", threads),
        *("-r", windows, "-o", "json", *repacking("--repack", 0)),
    ]
    return lambda: float(json.loads(output_of(list(map(str, line))))[0]["avg_ts"])


def repacking(*option: object) -> tuple[object, ...]:
    """The option by which a tool of llama.cpp leaves weights in their layout, where it would crash else."""
    return option if core.has_amx() else ()


def llama_imatrix(tools: Path, model: Path, text: Path, windows: int, threads: int, directory: Path) -> Measure:
    line = [
        *(tools / "llama-imatrix", "-m", model, "-f", text, "--no-ppl", "-o", directory / "imatrix.gguf"),
        *("-c", WINDOW, "-b", WINDOW, "-ub", WINDOW, "-t", threads, "--chunks", windows),
        *repacking("--no-repack"),
    ]

    def measure() -> float:
        """From the line that says that it begins to its end, with what it writes and frees there: a small part."""
        started = None
        with subprocess.Popen(
            list(map(str, line)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as run:
            for said in run.stderr or ():
                if "computing over" in said:
                    started = time.monotonic()
        if run.returncode or started is None:
            raise SystemExit(f"{line[0]}: failed")
        return windows * WINDOW / (time.monotonic() - started)

    return measure


def batches(parent: Path, long: NDArray[np.int32], threads: int) -> Iterator[Comparison]:
    """Documents of other lengths, and larger batches, beside 512 tokens at a time."""
    random = np.random.default_rng(0)
    lengths = random.integers(SHORT[0], SHORT[1] + 1, 2 * long.size // sum(SHORT))
    flat = np.resize(long, lengths.sum())
    short = [part.tolist() for part in np.split(flat, np.cumsum(lengths)[:-1])]

    def at(model: coe.Model, documents: list[list[int]], stats: str = "routing") -> Measure:
        coe.profile(model, documents[:1], stats=stats)  # a warm-up

        def measure() -> float:
            started = time.monotonic()
            profile = coe.profile(model, documents, stats=stats)
            return profile.n_tokens / (time.monotonic() - started)

        return measure

    def load(n_batch: int, n_sequences: int) -> coe.Model:
        return coe.Model(parent, n_batch=n_batch, n_sequences=n_sequences, n_threads=threads)

    with load(WINDOW, DOCUMENTS_AT_ONCE) as packed:
        plain = at(packed, long.tolist())
        against = "our own documents of 512"
        yield Comparison(
            "profile --stats contribution, documents of 512 tokens",
            "tokens/s",
            at(packed, long.tolist(), "contribution"),
            "--stats routing",
            plain,
            Target(0.9 if core.free_gpu_memory() else 0.95, True),
        )
        name = f"profile, documents of {SHORT[0]} to {SHORT[1]} tokens"
        yield Comparison(name, "tokens/s", at(packed, short), against, plain, Target(1.02, True))
        with load(WINDOW, 1) as alone:
            yield Comparison("the same, one at a time", "tokens/s", at(alone, short), against, plain)
        for n_batch in (1024, 2048):
            with load(n_batch, DOCUMENTS_AT_ONCE) as larger:
                what = f"documents of 512, batches of {n_batch}"
                yield Comparison(what, "tokens/s", at(larger, long.tolist()), "batches of 512", plain)


@contextlib.contextmanager
def bare_contexts(parent: Path, threads: int) -> Iterator[tuple[int, int]]:
    """Two contexts of llama.cpp on one model: one as it is, one whose callback is the profiler's, as of the C API.
    Both compute the whole graph, as for a host that decodes for its own ends."""
    moe = coe.MoeModel(parent)
    profiler = core.LiveProfiler(moe.blocks, moe.n_experts, [layer.top_k for layer in moe.routed_layers], 1)
    llama_cpp.llama_log_set(_QUIET, ctypes.c_void_p())
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = not core.has_amx()  # as for our own, which csrc/llama/placement.cpp explains
    model = llama_cpp.llama_model_load_from_file(os.fsencode(parent), model_params)
    contexts = []
    for with_tap in (False, True):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
        params.n_threads = params.n_threads_batch = threads
        if with_tap:
            params.cb_eval = ctypes.cast(profiler.callback, type(params.cb_eval))
            params.cb_eval_user_data = profiler.user_data
        contexts.append(llama_cpp.llama_init_from_model(model, params))
        decode(contexts[-1], np.zeros((1, WINDOW), np.int32))
    _, _, _, seen, _ = profiler.counts()[0]
    if seen[0] != WINDOW:
        raise SystemExit(f"the tap has counted {seen} of {WINDOW} tokens")
    yield contexts[0], contexts[1]
    for context in contexts:
        llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def decode(context: int, rows: NDArray[np.int32]) -> float:
    """Seconds for all rows, each from position 0."""
    started = time.monotonic()
    for row in rows:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        array = (llama_cpp.llama_token * len(row))(*row.tolist())
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(row))):
            raise SystemExit("llama.cpp cannot decode")
    llama_cpp.llama_synchronize(context)
    return time.monotonic() - started
