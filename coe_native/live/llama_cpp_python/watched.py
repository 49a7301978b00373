"""A Llama whose context is watched."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Generator
from typing import Any

import llama_cpp
from llama_cpp import Llama
from llama_cpp._internals import LlamaContext

from coe_native._native import core
from coe_native.errors import CoeError
from coe_native.live.parts import Part


class Original:
    """What attaching changes in a Llama."""

    def __init__(self, llama: Llama) -> None:
        params = llama.context_params
        self._kind = type(llama)
        # The field itself would change with the structure that it is part of.
        self.callback = ctypes.cast(params.cb_eval, ctypes.c_void_p).value or 0
        self.user_data = params.cb_eval_user_data
        # What keeps a callback of Python's alive.
        self._referred = dict(params._objects or {})

    def restore_callback(self, llama: Llama) -> None:
        set_callback(llama, self.callback, self.user_data)
        llama.context_params._objects.update(self._referred)

    def restore_class(self, llama: Llama) -> None:
        llama.__class__ = self._kind
        for name in ("coe_native_live", "coe_native_masked", "coe_native_in_use"):
            llama.__dict__.pop(name, None)


def set_callback(llama: Llama, address: int, user_data: int | None) -> None:
    """For the contexts that are made from now on."""
    params = llama.context_params
    params.cb_eval = ctypes.cast(address, type(params.cb_eval))
    params.cb_eval_user_data = user_data


def _using(llama: Llama) -> contextlib.AbstractContextManager[Any]:
    """Keep the context from being taken away. Another thread may just have detached the Llama."""
    in_use: threading.RLock | None = llama.__dict__.get("coe_native_in_use")
    return in_use or contextlib.nullcontext()


class WatchedLlama(Llama):  # type: ignore[misc]
    """What a Llama becomes: it tells the counts which part its tokens belong to, and keeps its context from being
    taken away while it uses it. Nothing of it refers to the Capture, so that forgetting both frees the model at
    once."""

    coe_native_live: core.LiveProfiler
    coe_native_masked: bool
    coe_native_in_use: threading.RLock

    def generate(self, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        in_use = _using(self)  # also once the Llama has been detached
        with in_use:
            steps = WatchedLlama._unwatched(self, "generate", Part.PROMPT)(*args, **kwargs)
        sent = None
        try:
            while True:
                with in_use:
                    token = steps.send(sent)
                sent = yield token
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def eval(self, *args: Any, **kwargs: Any) -> None:
        with _using(self):
            WatchedLlama._unwatched(self, "eval")(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        with _using(self):
            return WatchedLlama._unwatched(self, "embed", Part.PROMPT)(*args, **kwargs)

    def reset(self) -> None:
        with _using(self):
            WatchedLlama._unwatched(self, "reset", Part.PROMPT)()

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        with _using(self):
            return WatchedLlama._unwatched(self, "sample", Part.GENERATED)(*args, **kwargs)

    def save_state(self) -> Any:
        with _using(self):
            return WatchedLlama._unwatched(self, "save_state")()

    def load_state(self, *args: Any, **kwargs: Any) -> None:
        with _using(self):
            WatchedLlama._unwatched(self, "load_state")(*args, **kwargs)

    def n_ctx(self) -> Any:
        with _using(self):
            return WatchedLlama._unwatched(self, "n_ctx")()

    def pooling_type(self) -> Any:
        with _using(self):
            return WatchedLlama._unwatched(self, "pooling_type")()

    def _unwatched(self, name: str, part: Part | None = None) -> Callable[..., Any]:
        """Return the method of the Llama's own class, and count its tokens for `part`, unless another thread has
        just detached the Llama."""
        if not isinstance(self, WatchedLlama):
            return getattr(self, name)
        if part is not None:
            # Reading the counts raises the error; the answer goes on.
            with contextlib.suppress(RuntimeError):
                self.coe_native_live.select(Part.MASKED if self.coe_native_masked else part)
        return getattr(super(), name)  # type: ignore[no-any-return]


class WatchedContext(LlamaContext):  # type: ignore[misc]
    """A context that announces its batches to the counts, and whose callbacks live as long as it does."""

    in_use: threading.RLock
    live: core.LiveProfiler
    before: Original
    interrupted = False
    decoding = False

    def decode(self, batch: Any) -> None:
        with self.in_use:
            if self.interrupted:
                raise RuntimeError("interrupted")
            self.live.begin_decode()
            self.decoding = True
            try:
                super().decode(batch)
            finally:
                self.decoding = False
                self.live.end_decode()


def plain_context(llama: Llama) -> LlamaContext:
    return LlamaContext(model=llama._model, params=llama.context_params, verbose=llama.verbose)


def renew_context(llama: Llama, make: Callable[[Llama], LlamaContext], before: Original) -> None:
    """Gives a Llama the context that `make` returns, with what the old one held in memory; where that fails, one
    as `before`. The old one is closed first, for there may be no room for two."""
    old, state = llama._ctx, None
    if llama.n_tokens > 0 and old.memory is not None:
        buffer = (ctypes.c_uint8 * old.get_state_size())()
        n_bytes = llama_cpp.llama_state_get_data(old.ctx, buffer, len(buffer))
        state = (ctypes.c_uint8 * n_bytes).from_buffer(buffer)
    old.close()
    try:
        _put_context(llama, make(llama), state)
    except BaseException as error:
        before.restore_callback(llama)
        llama._ctx.close()
        _put_context(llama, plain_context(llama), state)
        if isinstance(error, ValueError):
            raise CoeError(f"{llama.model_path}: llama.cpp cannot make its context anew: {error}") from error
        raise


def _put_context(llama: Llama, context: LlamaContext, state: Any) -> None:
    # The model closes it before itself.
    llama._ctx = context
    if llama._lora_adapter is not None:
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(llama._lora_adapter)
        scales = (ctypes.c_float * 1)(llama.lora_scale)
        llama_cpp.llama_set_adapters_lora(context.ctx, adapters, 1, scales)
    if state is None:
        return
    if llama_cpp.llama_state_set_data(context.ctx, state, len(state)) != len(state):
        raise CoeError(f"{llama.model_path}: llama.cpp cannot restore what its context held")
    if not llama._requires_eval:
        # The state has no logits, and somebody may sample from them: the last token is run again, or all where
        # the memory cannot be cut back.
        tokens = llama.input_ids[: llama.n_tokens].tolist()
        kept = len(tokens) - 1
        if not context.kv_cache_seq_rm(-1, kept, -1):
            context.kv_cache_clear()
            kept = 0
        llama.n_tokens = kept
        llama.eval(tokens[kept:])
