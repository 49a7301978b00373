"""Routing capture in somebody else's program: for ``llama_cpp.Llama`` objects that it has made and uses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

import llama_cpp
import numpy as np
from llama_cpp import Llama
from llama_cpp._internals import LlamaContext
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.live.llama_cpp_python.watched import (
    Original,
    WatchedContext,
    WatchedLlama,
    plain_context,
    renew_context,
    set_callback,
)
from coe_native.live.parts import Part
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.profile import RoutingProfile, merge

_NAMES = ("prompts, live", "generated, live", "under a mask, live")


def attach(llama: Llama) -> Capture:
    """Starts to count which experts the routers of a ``llama_cpp.Llama`` choose, whatever it is used for from
    now on: completions, conversations, embeddings, or ``eval`` and ``sample`` by hand. What it generates stays the
    same.

    Its context is made anew, for llama.cpp takes callbacks only when a context is made; what it holds in memory is
    carried over. A callback that it had before goes on being called. Do not call it while another thread uses the
    Llama, nor in the middle of an answer that a draft model helps with. Generation becomes some 1 % slower, with
    models of a few layers that take less than a millisecond a token 6 to 9 %; reading prompts does not
    (``python -m benchmarks --only generate``).

    Raises InputError for a model without experts, and CoeError where its routers are not what its header says.
    """
    return Capture(llama)


class Capture:
    """What `attach` returns: the counts so far, and a live mask. Use it in a ``with`` block, or call `detach`.

    Tokens of prompts and generated ones are counted apart: what is evaluated after the first token has been
    sampled is generated, until the next call of ``generate`` (which all completions go through), ``embed`` or
    ``reset``. The last token of an answer is run with the next prompt, if at all. With a draft model, drafted
    tokens count as generated once the model has run them, also those that it then refuses. Tokens that run under
    a live mask are in neither, for what they choose says nothing of the experts that it drops.

    Each layer counts for itself: where only the last token's logits are wanted, the last layer of most
    architectures runs for that token only. `RoutingProfile.layer_tokens` has the numbers; score and merge go by
    them. Nothing of any text is kept.

    May be used from other threads while the model runs. The counts are those of the batches that have ended, so
    reading them never waits. `detach` waits for the prompt or the token that is being computed; the answer goes on
    unwatched. Images are run past llama-cpp-python's own context: meanwhile they may be counted in part, and none
    of `apply`, `clear_mask` and `detach` may be called.
    """

    def __init__(self, llama: Llama) -> None:
        self.moe = ModelHeader(llama.model_path)
        self.mask: ExpertMask | None = None
        """The live mask in force."""
        if isinstance(llama, WatchedLlama):
            raise InputError(f"{self.moe.path}: is watched already; detach that first")
        layers = self.moe.routed_layers
        self._live = core.LiveProfiler(self.moe.blocks, self.moe.n_experts, [layer.top_k for layer in layers], 3)
        # Held while the Llama uses its context, so that no other thread takes that away.
        self._in_use = threading.RLock()
        self._llama: Llama | None = llama
        self._before = Original(llama)
        self._live.chain(self._before.callback, self._before.user_data or 0)
        set_callback(llama, self._live.callback, self._live.user_data)
        renew_context(llama, self._make_context, self._before)
        self._live.reset()
        llama.coe_native_live = self._live
        llama.coe_native_masked = False
        llama.coe_native_in_use = self._in_use
        llama.__class__ = type(type(llama).__name__, (WatchedLlama, type(llama)), {})

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def prompts(self) -> RoutingProfile:
        """Of the tokens that the model has read. Raises CoeError where a router was not seen as it must be, and so
        do the others."""
        return self._profiles()[Part.PROMPT]

    @property
    def generated(self) -> RoutingProfile:
        """Of the tokens that it has written."""
        return self._profiles()[Part.GENERATED]

    @property
    def masked(self) -> RoutingProfile:
        """Of all tokens that have run under a live mask."""
        return self._profiles()[Part.MASKED]

    @property
    def parts(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Of what it has read, and of what it has written, at one moment."""
        prompts, generated, _ = self._profiles()
        return prompts, generated

    @property
    def profile(self) -> RoutingProfile:
        """Of both together."""
        return merge(self.parts)

    def reset(self) -> None:
        """Forgets what was counted, and what went wrong."""
        self._live.reset()

    def recover(self) -> None:
        """Go on after an error. What was counted in the batch in which it happened is lost."""
        self._live.recover()

    def apply(self, mask: ExpertMask) -> None:
        """Makes the dropped experts unselectable from the next prompt on: the model is then the specialist that
        `prune` would write. What the Llama holds in memory is forgotten. Not in the middle of an answer.

        Raises InputError for a mask that was made for another model, or that the model can't be cut to.
        """
        check_cut(mask, self.moe)
        with self._between_batches():
            llama = self._without_cache()
            self._live.mask([list(mask.kept[block]) for block in sorted(mask.kept)])
            llama.coe_native_masked = True
            llama.reset()
            self.mask = mask

    def clear_mask(self) -> None:
        """All experts are selectable again, from the next prompt on."""
        with self._between_batches():
            self._unmask(self._without_cache())

    def detach(self) -> None:
        """Stops counting, takes a mask away and gives the Llama back as it was. The counts stay. A cache that it
        was given under a mask is taken away."""
        with self._between_batches():
            llama, self._llama = self._llama, None
            if llama is None:
                return
            if self.mask is not None:
                self._unmask(llama)
                llama.set_cache(None)
            self._before.restore_callback(llama)
            try:
                if llama._ctx.ctx is not None:
                    renew_context(llama, plain_context, self._before)
            finally:
                # Last: until then, whatever another thread asks of the Llama waits.
                self._before.restore_class(llama)

    def interrupt(self) -> None:
        """From now on, whatever the Llama is asked to run ends with an exception, and so does what it runs. Waits
        for the end of the batch that runs."""
        if self._llama is not None:
            self._llama._ctx.interrupted = True
            with self._in_use:
                pass

    @contextlib.contextmanager
    def _between_batches(self) -> Iterator[None]:
        """Keep other threads from using the Llama while the block runs. Raises CoeError where a callback of the
        host calls it in the middle of a batch."""
        with self._in_use:
            if self._llama is not None and getattr(self._llama._ctx, "decoding", False):
                raise CoeError(f"{self.moe.path}: a callback that llama.cpp calls in a batch cannot do this")
            yield

    def _unmask(self, llama: Llama) -> None:
        self._live.unmask()
        llama.coe_native_masked = False
        if llama._ctx.ctx is not None:
            llama.reset()
        self.mask = None

    def _without_cache(self) -> Llama:
        """The Llama, whose states were all computed with the experts of now."""
        if self._llama is None:
            raise CoeError(f"{self.moe.path}: is not watched any more")
        if self._llama.cache is not None:
            raise InputError(
                f"{self.moe.path}: its cache holds states that were computed with other experts; take it away "
                "first (set_cache(None))"
            )
        return self._llama

    def _profiles(self) -> list[RoutingProfile]:
        """Of each part, all at one moment."""
        try:
            counts = self._live.counts()
        except RuntimeError as error:
            raise CoeError(f"{self.moe.path}: {error}") from error
        return [self._profile(name, *part) for name, part in zip(_NAMES, counts, strict=True)]

    def _profile(
        self,
        name: str,
        histograms: NDArray[np.int64],
        weight_sum: NDArray[np.float64],
        rest: NDArray[np.float64],
        tokens: list[int],
    ) -> RoutingProfile:
        n_tokens = max(tokens)
        moe = self.moe
        return RoutingProfile(
            moe.architecture,
            moe.name,
            moe.fingerprint,
            tuple(moe.blocks),
            n_tokens,
            histograms,
            weight_sum,
            (CorpusRecord(name, 0, n_tokens, ""),) if n_tokens else (),
            moe.router_shape.n_groups,
            moe.router_shape.n_groups_used,
            weight_sum_rest=rest,
            layer_tokens=tuple(tokens),
        )

    def _make_context(self, llama: Llama) -> LlamaContext:
        """A watched context in which two tokens have run, that nobody sees: so it is known before anything counts
        that the routers are where the header says. Raises CoeError where they are not."""
        context = WatchedContext(model=llama._model, params=llama.context_params, verbose=llama.verbose)
        context.in_use, context.live, context.before = self._in_use, self._live, self._before
        try:
            if context.memory is not None:
                tokens = (llama_cpp.llama_token * min(2, llama.n_batch))()
                llama_cpp.llama_decode(context.ctx, llama_cpp.llama_batch_get_one(tokens, len(tokens)))
                context.kv_cache_clear()
                seen = self._profiles()[Part.PROMPT].layer_tokens
                unseen = [block for block, n_tokens in zip(self.moe.blocks, seen, strict=True) if n_tokens == 0]
                if unseen:
                    raise CoeError(f"{self.moe.path}: the routers of blocks {unseen} were not seen")
        except BaseException:
            context.close()
            raise
        return context
