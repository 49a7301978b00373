"""Profiling an F32 file beside forward hooks on the routers of the same model in transformers.

Needs the packages of the `reference` extra.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import coe_native as coe
from benchmarks.side_by_side import Comparison, Measure

WINDOW = 512


def comparisons(hf_model: Path, f32: Path, windows: int, threads: int) -> Iterator[Comparison]:
    with coe.Model(f32, n_sequences=16, n_threads=threads) as model:
        rows = np.random.default_rng(0).integers(0, model.n_vocab, (windows, WINDOW))
        documents = rows.tolist()

        def ours() -> float:
            started = time.monotonic()
            coe.profile(model, documents, stats="routing")
            return rows.size / (time.monotonic() - started)

        yield Comparison(
            "profile, an F32 file", "tokens/s", ours, "transformers hooks", hooks(hf_model, rows, threads)
        )


def hooks(hf_model: Path, rows: np.ndarray, threads: int) -> Measure:
    """transformers as it comes: its choice of code for attention and experts; a window at a time, no logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(hf_model, dtype=torch.float32).eval()
    counts: list[torch.Tensor] = []

    def count(_router: object, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        chosen = output[-1]
        counts.append(chosen.flatten().bincount())

    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    if not routers:
        raise SystemExit(f"{hf_model}: has no routers to hook")
    for router in routers:
        router.register_forward_hook(count)

    @torch.inference_mode()
    def measure() -> float:
        started = time.monotonic()
        for row in torch.from_numpy(rows):
            model.model(input_ids=row[None], use_cache=False)
        return rows.size / (time.monotonic() - started)

    return measure
