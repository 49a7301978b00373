"""How many experts fit into so much memory, by llama.cpp's own accounts. No weight is loaded, and none written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe_native._native import core
from coe_native.cores import available_cores
from coe_native.errors import InputError
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import MoeModel
from coe_native.surgery.plan import plan_prune

MOST_CONTEXT = 1 << 22
"""Tokens. llama.cpp lists each of them, allocated or not: these take it a quarter of a gigabyte."""


@dataclass(frozen=True)
class Placement:
    """How a model will be used: the tokens of its context, those that are computed at once, and where its layers
    and experts go (as for `Model`)."""

    n_ctx: int = 8192
    n_batch: int = 512
    n_gpu_layers: int = -1
    n_cpu_moe: int = 0
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes: its weights, the context's keys, values and states, and what batches are computed
    in. `on_gpu`: whether they are GPUs' bytes, with those in the machine's own memory left out."""

    weights: int
    context: int
    compute: int
    on_gpu: bool

    @property
    def total(self) -> int:
        return self.weights + self.context + self.compute


@dataclass(frozen=True)
class Fit:
    """The largest number of experts that fits, and what a specialist with so many takes."""

    keep: int
    memory: Memory


def memory_of(moe: MoeModel, keep: int, placement: Placement) -> Memory:
    """What a specialist with `keep` experts a layer takes while it is used, or with all of them the model itself.

    llama.cpp loads a header that has the specialist's tensors and no data behind it, allocates nothing, and says
    what it would have allocated. On a machine with GPUs, that is what it puts there; else, all of it. Raises
    InputError for a number that the model can't be cut to, and for what llama.cpp can't load.
    """
    moe.check_cut(keep)
    if max(placement.n_ctx, placement.n_batch) > MOST_CONTEXT:
        raise InputError(
            f"{moe.path}: a context of {placement.n_ctx} tokens is more than llama.cpp can account for in little "
            f"memory; ask for {MOST_CONTEXT} at most"
        )
    with _header_only(moe, keep) as path:
        try:
            session = core.Session(
                os.fsencode(path),
                n_ctx=max(placement.n_ctx, placement.n_batch),
                n_batch=placement.n_batch,
                n_seq_max=1,
                n_threads=available_cores(),
                n_gpu_layers=placement.n_gpu_layers,
                n_cpu_moe=placement.n_cpu_moe,
                devices=list(placement.devices),
                rpc=[],
                f32_kv=False,
                repack=True,
                mtp=False,
                simulate=True,
            )
            uses = session.memory()
        except RuntimeError as error:
            raise InputError(f"{moe.path}: {error}".replace(str(path), str(moe.path))) from error
    on_gpu = any(use["on_gpu"] for use in uses)
    counted = [use for use in uses if use["on_gpu"] == on_gpu]
    parts = {part: sum(use[part] for use in counted) for part in ("weights", "context", "compute")}
    return Memory(**parts, on_gpu=on_gpu)


def fit(moe: MoeModel, n_bytes: int, placement: Placement) -> Fit:
    """The largest number of experts a layer with which a specialist fits into `n_bytes` bytes, by `memory_of`; all
    of them where the model itself does.

    Raises InputError, saying what the smallest takes, where none fits.
    """
    keeps = moe.possible_keeps
    if len(keeps) == 1:
        moe.check_cut(moe.n_experts - 1)  # which says why there are no others

    def tried(index: int) -> Fit | None:
        memory = memory_of(moe, keeps[index], placement)
        return Fit(keeps[index], memory) if memory.total <= n_bytes else None

    found = tried(len(keeps) - 1)
    low, high = 0, len(keeps) - 1 if found is None else 0
    while low < high:  # with more experts a model never takes less
        middle = (low + high) // 2
        fits = tried(middle)
        found, low, high = (fits, middle + 1, high) if fits else (found, low, middle)
    if found is None:
        least = memory_of(moe, keeps[0], placement)
        raise InputError(
            f"{moe.path}: does not fit into {n_bytes >> 20} MiB: with {keeps[0]} experts a layer, the fewest "
            f"possible, and a context of {placement.n_ctx} tokens it takes {-(-least.total >> 20)} MiB; "
            "a shorter context, or --n-cpu-moe on a GPU, needs less"
        )
    return found


@contextlib.contextmanager
def _header_only(moe: MoeModel, keep: int) -> Iterator[Path]:
    """A file with the header of a specialist, as long as that is, and with nothing in it that takes space."""
    any_experts = tuple(moe.router_shape.best(np.zeros(moe.n_experts), keep))
    kept = dict.fromkeys(moe.blocks, any_experts)
    mask = ExpertMask(moe.architecture, moe.fingerprint, moe.n_experts, keep, kept)
    plan = plan_prune(moe, mask)
    with tempfile.TemporaryDirectory(prefix="coe-native-") as directory:
        path = Path(directory) / "specialist.gguf"
        with path.open("wb") as file:
            file.write(plan.header())
            file.truncate(plan.n_bytes)
        yield path
