"""ModelOptions: how a model is loaded."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass

from coe_native._native import core
from coe_native.cores import available_cores
from coe_native.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model is loaded, from the command line to llama.cpp.

    A new option needs a field here, one in C++'s SessionOptions, and an option of the command line.

    Attributes:
        n_ctx: Tokens of the longest window.
        n_batch: Tokens computed at once (llama.cpp's batch and ubatch). Encoders and diffusion models need a
            window in one piece, so they take at least `n_ctx`.
        n_batch_on_gpu: The same where layers run on a GPU that has the memory; 0: `n_batch`.
        n_sequences: Windows that may share a batch.
        n_threads: CPU threads; None: all cores.
        n_gpu_layers: Layers on the GPU; negative: all.
        n_cpu_moe: Number of first blocks whose experts stay in host memory; negative: all blocks.
        devices: llama.cpp's names of the devices to use; empty: all.
        rpc: llama.cpp's rpc-servers, ``HOST:PORT``. Their devices come before this machine's.
        f32_kv: Keys and values in F32 instead of F16, where rounding matters more than memory.
        repack: Let llama.cpp copy quantised weights to a layout that its CPU code reads faster. Without, weights
            stay in the file's pages.
        mtp: Load the layers that predict further tokens too, though no forward pass runs them.
        tokenizer_only: Read no weights, for tokenizing and chat templates alone.
        token_texts: Read the texts of tokens. Without, tokens are numbers only, and large vocabularies are loaded
            sooner.
        date: The date for chat templates that print one, YYYY-MM-DD. It is fixed, so that the same corpus has the
            same tokens every day.

    Raises:
        InputError: The context, the batch or the number of sequences is below 1, or the date is not a date.
    """

    n_ctx: int = 512
    n_batch: int = 512
    n_batch_on_gpu: int = 0
    n_sequences: int = 1
    n_threads: int | None = None
    n_gpu_layers: int = -1
    n_cpu_moe: int = 0
    devices: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    f32_kv: bool = False
    repack: bool = True
    mtp: bool = False
    tokenizer_only: bool = False
    token_texts: bool = True
    date: str = "2026-01-01"

    def __post_init__(self) -> None:
        if self.n_ctx < 1 or self.n_batch < 1 or self.n_sequences < 1 or self.n_batch_on_gpu < 0:
            raise InputError("the context, the batch and the number of sequences must be at least 1")
        try:
            datetime.date.fromisoformat(self.date)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.date!r} is not a date; write it like 2026-01-31") from error

    def for_session(self) -> core.SessionOptions:
        """Return the options of the compiled module.

        Raises:
            InputError: It cannot take one of the values.
        """
        options = core.SessionOptions()
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given["n_threads"] = given["n_threads"] or available_cores()
        given["simulate"] = given.pop("tokenizer_only")
        del given["date"], given["token_texts"]
        given["n_ctx"] = max(self.n_ctx, self.n_batch)
        given["devices"], given["rpc"] = list(self.devices), list(self.rpc)
        for name, value in given.items():
            try:
                setattr(options, name, value)
            except (TypeError, UnicodeEncodeError) as error:
                raise InputError(f"{name} cannot be {value!r}") from error
        return options


BATCH = 512
"""The default batch of a CPU: larger ones are slower."""

BATCH_ON_GPU = 2048
"""The default batch of profiling on a GPU: 1.3 to 1.5 times as fast as one of 512 (docs/benchmarks/speed.md)."""


@dataclass(frozen=True, kw_only=True)
class Placement(ModelOptions):
    """How a specialist will be used: ModelOptions with a context as chats need it."""

    n_ctx: int = 8192
