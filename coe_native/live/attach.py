"""Routing capture in another program, for ``llama_cpp.Llama`` objects that it has made and uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

import numpy as np
from llama_cpp import Llama
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.errors import CoeError, InputError
from coe_native.live.llama_cpp_python.watched import Attachment, WatchedLlama
from coe_native.live.parts import Part
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.output_norms import OutputNorms
from coe_native.routing.profile import RoutingProfile, merge
from coe_native.routing.stats import Stats, parse_stats

_NAMES = ("prompts, live", "generated, live", "under a mask, live")


def attach(llama: Llama, *, stats: str = Stats.ROUTING.value) -> Capture:
    """Start counting which experts the routers of a ``llama_cpp.Llama`` choose.

    Everything that the Llama runs from now on is counted: completions, conversations, embeddings, or ``eval``
    and ``sample`` by hand. Its output stays the same.

    The Llama gets a new context, because llama.cpp takes callbacks only when a context is made. What the old
    one held in memory is carried over, and a callback that it had is still called. Do not attach while
    another thread uses the Llama, nor in the middle of an answer that a draft model helps with.

    Generation becomes about 1 % slower, or 6 to 9 % with models of a few layers that take less than a
    millisecond a token. Reading prompts does not (``python -m benchmarks --only generate``).

    Args:
        llama: The Llama to watch.
        stats: What to count: one of STATS. ``contribution`` counts activation norms too, by which masks are best.
            docs/benchmarks/speed.md has its cost.

    Returns:
        The counts so far, which also sets live masks and detaches.

    Raises:
        InputError: The model has no experts, the Llama is attached already, or there are no such statistics.
        CoeError: The model's routers are not what its header says.
    """
    return Capture(llama, stats=stats)


class Capture:
    """The counts of an attached Llama, and its live mask. Use it in a ``with`` block, or call `detach`.

    Tokens of prompts and generated tokens are counted separately. Tokens that are evaluated after the first
    token has been sampled are generated ones, until the next call of ``generate`` (which all completions
    use), ``embed`` or ``reset``. The last token of an answer runs with the next prompt, if at all. With a
    draft model, a drafted token counts as generated if it is accepted and a token is sampled after it.
    Tokens that run under a live mask are in neither part, because their choices say nothing about the dropped
    experts.

    Each layer counts its own tokens: if only the last token's logits are requested, the last layer of most
    architectures runs for that token only. `RoutingProfile.layer_tokens` has the numbers, which scoring and
    merging use. No text is kept.

    It may be used from other threads while the model runs. The counts are those of finished batches, so
    reading them never waits. `detach` waits for the prompt or the token that is being computed; the answer
    then continues unwatched. Images do not run through llama-cpp-python's own context: while they run, they
    may be counted in part, and `apply`, `clear_mask` and `detach` must not be called.

    Attributes:
        moe: The header of the Llama's model.
        mask: The live mask in force, or None.
    """

    def __init__(self, llama: Llama, *, stats: str = Stats.ROUTING.value) -> None:
        self.moe = ModelHeader(llama.model_path)
        self.mask: ExpertMask | None = None
        if isinstance(llama, WatchedLlama):
            raise InputError(f"{self.moe.path}: the Llama is attached already; call detach() first")
        self.moe.check_countable()
        layers = self.moe.routed_layers
        self._live = core.LiveProfiler(self.moe.blocks, self.moe.n_experts, [layer.top_k for layer in layers], 3)
        if parse_stats(stats) is Stats.CONTRIBUTION:
            self._live.watch_outputs(max(1, llama.n_threads_batch))
        self._attachment = Attachment(llama, self._live, self._check_routers)

    def __enter__(self) -> Capture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def prompts(self) -> RoutingProfile:
        """Return the profile of the tokens of prompts.

        Raises:
            CoeError: A router did not run as expected. All other profiles raise this too.
        """
        return self._profiles()[Part.PROMPT]

    @property
    def generated(self) -> RoutingProfile:
        """Return the profile of the generated tokens."""
        return self._profiles()[Part.GENERATED]

    @property
    def masked(self) -> RoutingProfile:
        """Return the profile of all tokens that have run under a live mask."""
        return self._profiles()[Part.MASKED]

    @property
    def parts(self) -> tuple[RoutingProfile, RoutingProfile]:
        """Return the profiles of prompts and of generated tokens, at one moment."""
        prompts, generated, _ = self._profiles()
        return prompts, generated

    @property
    def profile(self) -> RoutingProfile:
        """Return the profile of prompts and generated tokens together."""
        return merge(self.parts)

    def reset(self) -> None:
        """Forget all counts and errors."""
        self._live.reset()

    def recover(self) -> None:
        """Continue after an error. The counts of the batch in which it happened are lost."""
        self._live.recover()

    def apply(self, mask: ExpertMask) -> None:
        """Make the dropped experts unselectable from the next prompt on.

        The model is then the specialist that `prune` would write. What the Llama holds in memory is
        forgotten. Do not call this in the middle of an answer.

        Args:
            mask: The mask.

        Raises:
            InputError: The mask is for another model or not possible for it, or the Llama has a cache.
            CoeError: The Llama is no longer attached, or a callback calls this in the middle of a batch.
        """
        check_cut(mask, self.moe)
        with self._between_batches():
            self._check_no_cache()
            self._live.mask([list(mask.kept[block]) for block in sorted(mask.kept)])
            self._attachment.set_masked(True)
            self.mask = mask

    def clear_mask(self) -> None:
        """Make all experts selectable again, from the next prompt on."""
        with self._between_batches():
            self._check_no_cache()
            self._unmask()

    def detach(self) -> None:
        """Stop counting, remove the mask, and restore the Llama as it was.

        The counts stay. A cache that the Llama was given under a mask is removed.
        """
        with self._between_batches():
            llama = self._attachment.llama
            if llama is not None and self.mask is not None:
                self._unmask()
                llama.set_cache(None)
            self._attachment.detach()

    def interrupt(self) -> None:
        """Make everything that the Llama runs, now or later, end with an exception.

        Waits for the end of the current batch.
        """
        self._attachment.interrupt()

    @contextlib.contextmanager
    def _between_batches(self) -> Iterator[None]:
        """Keep other threads from using the Llama while the block runs.

        Raises:
            CoeError: A callback of the host calls this in the middle of a batch.
        """
        with self._attachment.in_use:
            if self._attachment.is_decoding:
                raise CoeError(f"{self.moe.path}: this cannot be done in a callback, in the middle of a batch")
            yield

    def _unmask(self) -> None:
        self._live.unmask()
        self._attachment.set_masked(False)
        self.mask = None

    def _check_no_cache(self) -> None:
        """Check that the Llama is attached, and has no cache of states that were computed with other experts."""
        llama = self._attachment.llama
        if llama is None:
            raise CoeError(f"{self.moe.path}: the Llama is no longer attached")
        if llama.cache is not None:
            raise InputError(
                f"{self.moe.path}: its cache holds states that were computed with other experts; remove it "
                "first (set_cache(None))"
            )

    def _profiles(self) -> list[RoutingProfile]:
        """Return the profile of each part, all at one moment."""
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
        norms: tuple[NDArray[np.float64], ...] | None,
    ) -> RoutingProfile:
        n_tokens = max(tokens)
        moe = self.moe
        return RoutingProfile(
            architecture=moe.architecture,
            model_name=moe.name,
            fingerprint=moe.fingerprint,
            layers=tuple(moe.blocks),
            n_tokens=n_tokens,
            histograms=histograms,
            weight_sum=weight_sum,
            corpora=(CorpusRecord(name, 0, n_tokens, ""),) if n_tokens else (),
            n_groups=moe.router_shape.n_groups,
            n_groups_used=moe.router_shape.n_groups_used,
            weight_sum_rest=rest,
            layer_tokens=tuple(tokens),
            outputs=None if norms is None else OutputNorms(norms[0], norms[2], norms[1], norms[3]),
        )

    def _check_routers(self) -> None:
        """Check that test tokens were counted in all layers.

        Raises:
            CoeError: The routers are not where the header says.
        """
        seen = self._profiles()[Part.PROMPT].layer_tokens
        unseen = [block for block, n_tokens in zip(self.moe.blocks, seen, strict=True) if n_tokens == 0]
        if unseen:
            raise CoeError(f"{self.moe.path}: the routers of blocks {unseen} were not seen")
