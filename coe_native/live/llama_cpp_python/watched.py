"""Attach to a Llama: its class, its callback and its context are replaced by watched ones."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import llama_cpp
from llama_cpp import Llama
from llama_cpp._internals import LlamaContext

from coe_native._native import core
from coe_native.errors import CoeError
from coe_native.live.parts import Part


class Attachment:
    """A Llama that is watched until `detach`. Its class, its callback and its context are replaced.

    Attributes:
        in_use: Held while the Llama uses its context, so that no other thread replaces that.
    """

    def __init__(self, llama: Llama, live: core.LiveProfiler, check: Callable[[], None]) -> None:
        """Attach to a Llama.

        Args:
            llama: The Llama.
            live: Counts its routers' choices.
            check: Called after two test tokens have run in the new context; raises if they were not counted.

        Raises:
            CoeError: llama.cpp cannot make the new context. The Llama is as it was before, also if `check` fails.
        """
        self._live = live
        self.in_use = threading.RLock()
        self._llama: Llama | None = llama
        self._before = _Original(llama)
        live.chain(self._before.callback, self._before.user_data or 0)
        _set_callback(llama, live.callback, live.user_data)
        renew_context(llama, lambda llama: self._watched_context(llama, check), self._before)
        live.reset()
        llama.coe_native_live = live
        llama.coe_native_masked = False
        llama.coe_native_is_answering = False
        llama.coe_native_held_from = None
        llama.coe_native_usage = Usage()
        llama.coe_native_in_use = self.in_use
        llama.__class__ = type(type(llama).__name__, (WatchedLlama, type(llama)), {})

    @property
    def llama(self) -> Llama | None:
        """Return the Llama, or None once it is detached."""
        return self._llama

    @property
    def is_decoding(self) -> bool:
        """Return whether a batch is running."""
        return self._llama is not None and getattr(self._llama._ctx, "decoding", False)

    def set_masked(self, masked: bool) -> None:
        """Say whether tokens run under a live mask from now on, and forget what the context holds."""
        assert self._llama is not None
        self._llama.coe_native_masked = masked
        if self._llama._ctx.ctx is not None:
            self._llama.reset()

    def interrupt(self) -> None:
        """Make everything that the Llama runs, now or later, end with an exception, after the current batch."""
        if self._llama is not None:
            self._llama._ctx.interrupted = True
            with self.in_use:
                pass

    def detach(self) -> None:
        """Restore the Llama as it was."""
        llama, self._llama = self._llama, None
        if llama is None:
            return
        self._before.restore_callback(llama)
        try:
            if llama._ctx.ctx is not None:
                renew_context(llama, _plain_context, self._before)
        finally:
            # Last: until then, calls from other threads wait.
            self._before.restore_class(llama)

    def _watched_context(self, llama: Llama, check: Callable[[], None]) -> LlamaContext:
        """Return a watched context, after two test tokens have been counted in it."""
        context = _WatchedContext(model=llama._model, params=llama.context_params, verbose=llama.verbose)
        context.in_use, context.live, context.before = self.in_use, self._live, self._before
        try:
            if context.memory is not None:
                tokens = (llama_cpp.llama_token * min(2, llama.n_batch))()
                llama_cpp.llama_decode(context.ctx, llama_cpp.llama_batch_get_one(tokens, len(tokens)))
                context.kv_cache_clear()
                check()
        except BaseException:
            context.close()
            raise
        return context


class _Original:
    """The parts of a Llama that attaching changes, as they were before."""

    def __init__(self, llama: Llama) -> None:
        params = llama.context_params
        self._kind = type(llama)
        # As a number: the field itself would change with its structure.
        self.callback = ctypes.cast(params.cb_eval, ctypes.c_void_p).value or 0
        self.user_data = params.cb_eval_user_data
        # References that keep a Python callback alive.
        self._referred = dict(params._objects or {})

    def restore_callback(self, llama: Llama) -> None:
        """Give a Llama its callback back, for contexts that are made from now on."""
        _set_callback(llama, self.callback, self.user_data)
        llama.context_params._objects.update(self._referred)

    def restore_class(self, llama: Llama) -> None:
        """Give a Llama its class back."""
        llama.__class__ = self._kind
        for name in WatchedLlama.__annotations__:
            llama.__dict__.pop(name, None)


def _set_callback(llama: Llama, address: int, user_data: int | None) -> None:
    """Set the callback of a Llama, for contexts that are made from now on.

    Args:
        llama: The Llama.
        address: Address of the callback; 0: none.
        user_data: Address that the callback is called with.
    """
    params = llama.context_params
    params.cb_eval = ctypes.cast(address, type(params.cb_eval))
    params.cb_eval_user_data = user_data


def _using(llama: Llama) -> contextlib.AbstractContextManager[Any]:
    """Return a lock that keeps the context in place; another thread may just have detached the Llama."""
    in_use: threading.RLock | None = llama.__dict__.get("coe_native_in_use")
    return in_use or contextlib.nullcontext()


@dataclass
class Usage:
    """Tokens of prompts and of answers, since the Llama was attached.

    Attributes:
        prompt: Tokens of prompts, also those that were in memory already.
        completion: Tokens of answers, without those that end them.
    """

    prompt: int = 0
    completion: int = 0

    def add(self, llama: Llama, token: int, *, is_first: bool) -> None:
        """Add a token that was sampled, and the prompt if it is the first of an answer."""
        if is_first:
            self.prompt += llama.n_tokens
        self.completion += not llama_cpp.llama_vocab_is_eog(llama._model.vocab, token)


class WatchedLlama(Llama):  # type: ignore[misc]
    """The class of an attached Llama.

    Its methods tell the counts which part their tokens belong to, and keep the context in place while they
    use it. It has no reference to the Capture, so that the model is freed as soon as both are forgotten.
    """

    coe_native_live: core.LiveProfiler
    coe_native_masked: bool
    coe_native_is_answering: bool
    coe_native_held_from: int | None
    coe_native_usage: Usage
    coe_native_in_use: threading.RLock

    def generate(self, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        """Generate tokens, as the Llama's own method; they count as a prompt's until one is sampled."""
        in_use = _using(self)  # also once the Llama has been detached
        with in_use:
            steps = WatchedLlama._unwatched(self, "generate", Part.PROMPT)(*args, **kwargs)
        sent, is_first = None, True
        try:
            while True:
                with in_use:
                    token = steps.send(sent)
                    if isinstance(self, WatchedLlama):
                        self.coe_native_usage.add(self, token, is_first=is_first)
                is_first, sent = False, (yield token)
        except StopIteration as end:
            return end.value
        finally:
            steps.close()

    def eval(self, *args: Any, **kwargs: Any) -> None:
        """Run tokens, as the Llama's own method."""
        with _using(self):
            run = WatchedLlama._unwatched(self, "eval")
            if isinstance(self, WatchedLlama):
                # What follows a sampled token was drafted: it counts once a token is sampled after it.
                is_draft = self.draft_model is not None and self.coe_native_is_answering
                self.coe_native_held_from = self.n_tokens if is_draft else None
                self.coe_native_live.hold(is_draft)
            run(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """Return embeddings, as the Llama's own method; tokens count as a prompt's."""
        with _using(self):
            return WatchedLlama._unwatched(self, "embed", Part.PROMPT)(*args, **kwargs)

    def reset(self) -> None:
        """Reset the Llama, as its own method; tokens that follow count as a prompt's."""
        with _using(self):
            WatchedLlama._unwatched(self, "reset", Part.PROMPT)()

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """Sample a token, as the Llama's own method; tokens that follow count as generated."""
        with _using(self):
            sample = WatchedLlama._unwatched(self, "sample", Part.GENERATED)
            if isinstance(self, WatchedLlama) and self.coe_native_held_from is not None:
                at = kwargs.get("idx")
                last = self.n_tokens - 1 if at is None else at
                self.coe_native_live.accept(last + 1 - self.coe_native_held_from)
            return sample(*args, **kwargs)

    def save_state(self) -> Any:
        """Return the state, as the Llama's own method."""
        with _using(self):
            return WatchedLlama._unwatched(self, "save_state")()

    def load_state(self, *args: Any, **kwargs: Any) -> None:
        """Load a state, as the Llama's own method."""
        with _using(self):
            WatchedLlama._unwatched(self, "load_state")(*args, **kwargs)

    def n_ctx(self) -> Any:
        """Return the size of the context, as the Llama's own method."""
        with _using(self):
            return WatchedLlama._unwatched(self, "n_ctx")()

    def pooling_type(self) -> Any:
        """Return the type of pooling, as the Llama's own method."""
        with _using(self):
            return WatchedLlama._unwatched(self, "pooling_type")()

    def _unwatched(self, name: str, part: Part | None = None) -> Callable[..., Any]:
        """Return the method of the Llama's own class, after selecting the part that its tokens count for.

        Nothing is selected if another thread has just detached the Llama.
        """
        if not isinstance(self, WatchedLlama):
            return getattr(self, name)
        if part is not None:
            # The answer continues; reading the counts raises the error.
            self.coe_native_is_answering = part is Part.GENERATED
            with contextlib.suppress(RuntimeError):
                self.coe_native_live.select(Part.MASKED if self.coe_native_masked else part)
        return getattr(super(), name)  # type: ignore[no-any-return]


class _WatchedContext(LlamaContext):  # type: ignore[misc]
    """A context that announces its batches to the counts, and keeps its callbacks alive."""

    in_use: threading.RLock
    live: core.LiveProfiler
    before: _Original
    interrupted = False
    decoding = False

    def decode(self, batch: Any) -> None:
        """Run a batch.

        Raises:
            RuntimeError: The Capture has interrupted the Llama, or llama.cpp fails.
        """
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


def _plain_context(llama: Llama) -> LlamaContext:
    """Return a new context of llama-cpp-python's own class."""
    return LlamaContext(model=llama._model, params=llama.context_params, verbose=llama.verbose)


def renew_context(llama: Llama, make: Callable[[Llama], LlamaContext], before: _Original) -> None:
    """Replace the context of a Llama, and keep what it held in memory.

    The old context is closed first, because there may be no room for two.

    Args:
        llama: The Llama.
        make: Makes the new context. If it fails, the Llama gets a context as it had before.
        before: The Llama's original callback.

    Raises:
        CoeError: llama.cpp cannot make the context, or cannot restore what the old one held.
    """
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
        _put_context(llama, _plain_context(llama), state)
        if isinstance(error, ValueError):
            raise CoeError(f"{llama.model_path}: llama.cpp cannot recreate its context: {error}") from error
        raise


def _put_context(llama: Llama, context: LlamaContext, state: Any) -> None:
    # The model closes its context before itself.
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
        # The state has no logits, which may be sampled from: run the last token again, or all tokens if the
        # memory cannot be truncated.
        tokens = llama.input_ids[: llama.n_tokens].tolist()
        kept = len(tokens) - 1
        if not context.kv_cache_seq_rm(-1, kept, -1):
            context.kv_cache_clear()
            kept = 0
        llama.n_tokens = kept
        llama.eval(tokens[kept:])
