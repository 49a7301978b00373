"""LoadedModel: a model loaded in llama.cpp. Run tokens, read outputs, count routers' choices, mask experts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.corpus.batching import Batch, Tokens, batches
from coe_native.errors import CoeError, InputError
from coe_native.llama.errors import naming
from coe_native.llama.memory import advice_for_gpu, check_context
from coe_native.llama.options import ModelOptions
from coe_native.llama.rpc import check_servers
from coe_native.llama.text import ModelText
from coe_native.llama.text_only import loadable
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.model.imatrix_file import ImatrixEntry
from coe_native.routing.output_norms import OutputNorms

_open_models: weakref.WeakSet[LoadedModel] = weakref.WeakSet()


@dataclass(frozen=True)
class RouterCounts:
    """What a watched model has counted: see RoutingProfile for the arrays."""

    histograms: NDArray[np.int64]
    weight_sum: NDArray[np.float64]
    weight_sum_rest: NDArray[np.float64]
    outputs: OutputNorms | None


class LoadedModel:
    """A parent or specialist, loaded in llama.cpp. Use it in a ``with`` block, or call `close`.

    Not for use by two threads at once.

    Attributes:
        moe: The model's header.
        options: The options it was loaded with.
        n_ctx: Tokens of the longest window.
        n_batch: Tokens computed at once, which may be more than the options say.
        n_sequences: Windows that may share a batch.
        n_vocab: Size of the vocabulary.
        text: The tokenizer and the chat template.
        mask: The live mask, or None.
        predicts: Whether a token's output depends only on those before it. Without, there is no perplexity.
    """

    def __init__(self, path: str | Path, options: ModelOptions | None = None, **changes: Any) -> None:
        """Load a model.

        Args:
            path: Its file; of a split model, the first.
            options: How it is loaded.
            **changes: Fields of ModelOptions that differ from `options`.

        Raises:
            InputError: The file cannot be read, has no experts, or llama.cpp refuses it.
        """
        given = dataclasses.replace(options or ModelOptions(), **changes)
        given = dataclasses.replace(given, devices=tuple(given.devices), rpc=tuple(given.rpc))
        self.moe = ModelHeader(path)
        if not self.moe.is_causal:
            given = dataclasses.replace(given, n_batch=max(given.n_batch, given.n_ctx))
        # llama.cpp gives every sequence an output of each batch.
        given = dataclasses.replace(given, n_sequences=min(given.n_sequences, given.n_batch))
        self.options = given
        self.mask: ExpertMask | None = None
        self._open_session: core.Session | None = self._open(given)
        _open_models.add(self)
        self.n_ctx = given.n_ctx
        self.n_sequences = given.n_sequences
        self.n_batch = self.session.n_batch
        self.n_vocab = self.session.n_vocab
        self.text = ModelText(self.moe, lambda: self.session, given.date)
        self.predicts = self.session.has_memory and self.moe.is_causal

    def _open(self, options: ModelOptions) -> core.Session:
        check_servers(set(options.rpc) - _servers_in_use())
        gpu_memory = core.free_gpu_memory() if options.n_gpu_layers else 0
        if self.moe.is_causal and not gpu_memory and not options.rpc:
            check_context(self.moe, options)
        try:
            with loadable(self.moe, with_weights=not options.tokenizer_only) as path:
                return core.Session(os.fsencode(path), self._for_session(options))
        except RuntimeError as error:
            advice = advice_for_gpu(self.moe, options, gpu_memory) if gpu_memory else ""
            raise InputError(f"{self.moe.path}: {error}{advice}") from error

    def _for_session(self, options: ModelOptions) -> core.SessionOptions:
        wanted = options.for_session()
        embedding = self.moe.tensors.get("token_embd.weight")
        if not options.token_texts and embedding is not None:
            wanted.n_nameless_tokens = embedding.shape[-1]
            wanted.vocab_size_key = f"{self.moe.architecture}.vocab_size"
        return wanted

    @property
    def session(self) -> core.Session:
        """Return the session of the compiled module.

        Raises:
            CoeError: The model has been closed.
        """
        if self._open_session is None:
            raise CoeError(f"{self.moe.path}: the model has been closed")
        return self._open_session

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def like(self, path: str | Path) -> LoadedModel:
        """Load another file with the same options."""
        return LoadedModel(path, dataclasses.replace(self.options, n_batch=self.n_batch, n_batch_on_gpu=0))

    def close(self) -> None:
        """Free the model's memory. Closing twice does no harm."""
        self.text.close()
        self._open_session = None

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Return the tokens of a text: see `ModelText.tokenize`."""
        return self.text.tokenize(text, parse_special=parse_special)

    def apply(self, mask: ExpertMask) -> None:
        """Make the dropped experts unselectable from now on: the model computes what the pruned file will.

        Raises:
            InputError: The mask was made for another model, or the model cannot be cut to it.
        """
        check_cut(mask, self.moe)
        blocks = sorted(mask.kept)
        self.session.mask(blocks, [list(mask.kept[block]) for block in blocks], mask.n_experts)
        self.mask = mask

    def clear_mask(self) -> None:
        """Make all experts selectable again."""
        self.session.unmask()
        self.mask = None

    def logits(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Return the logits after each token of one window, float32 [n_tokens, n_vocab].

        Raises:
            InputError: The model has no logits.
        """
        with naming(self.moe.path):
            parts = [self.session.logits(0, len(batch.tokens)) for batch in self.decode_window(tokens)]
        return np.concatenate(parts)

    def embeddings(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Return the last hidden state after each token of one window, float32 [n_tokens, n_embd].

        It is the output of a model without logits, such as an encoder.
        """
        self.session.want_embeddings(True)
        try:
            with naming(self.moe.path):
                parts = [self.session.embeddings(0, len(batch.tokens)) for batch in self.decode_window(tokens)]
        finally:
            self.session.want_embeddings(False)
        return np.concatenate(parts)

    def outputs(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Return the logits, or the embeddings of a model without logits, float32 [n_tokens, width]."""
        parts = []
        for batch in self.decode_window(tokens):
            if not self.session.has_logits:
                return self.embeddings(tokens)
            parts.append(self.session.logits(0, len(batch.tokens)))
        return np.concatenate(parts)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[str]]:
        """Record the operations of all graphs that run in the block.

        Yields:
            A list that is filled when the block ends: ``NAME KIND`` for each operation, in order.
        """
        operations: list[str] = []
        self.session.record_graph(True)
        try:
            yield operations
        finally:
            operations += self.session.record_graph(False)

    def decode_window(self, tokens: Sequence[int] | Tokens, first_output: int = 0) -> Iterator[Batch]:
        """Run one window, with outputs from the token at index `first_output` on.

        Yields:
            Each batch after it has run.

        Raises:
            InputError: The window is empty or longer than `n_ctx`.
        """
        window = as_window(tokens)
        if not 0 < len(window) <= self.n_ctx:
            raise InputError(f"a window must have 1 to {self.n_ctx} tokens (n_ctx), not {len(window)}")
        start = 0
        for batch in batches([window], self.n_batch, 1):
            self.decode(batch, max(0, first_output - start))
            start += len(batch.tokens)
            yield batch

    def decode(self, batch: Batch, first_output: int = 0) -> None:
        """Run one batch, with outputs from row `first_output` on; the last row always has one.

        Raises:
            CoeError: llama.cpp fails, or a router is not seen as the header says.
        """
        if batch.n_begun:
            self.session.reset()
        self.extend(batch.tokens, batch.positions, batch.sequences, first_output)

    def extend(self, tokens: Tokens, positions: Tokens, sequences: Tokens, first_output: int = 0) -> None:
        """Run more tokens of sequences that stay in the context, int32 [n_tokens] each; see `decode`."""
        with naming(self.moe.path):
            self.session.decode(tokens, positions, sequences, first_output)

    def forget(self, sequence: int) -> None:
        """Remove one sequence from the context."""
        with naming(self.moe.path):
            self.session.forget(sequence)

    def watch_routers(self, *, outputs: bool = False, inputs: bool = False) -> None:
        """Start counting the routers' choices from zero. Graphs end where nothing that counts follows.

        Args:
            outputs: Count the activation norms of the chosen experts too.
            inputs: Sum the squared inputs of all matrices too.

        Raises:
            InputError: The routers' choices cannot be counted.
            CoeError: The routers are not what the header says.
        """
        self.moe.check_countable()
        top_k = [layer.top_k for layer in self.moe.routed_layers]
        with naming(self.moe.path):
            self.session.watch(self.moe.blocks, self.moe.n_experts, top_k, outputs, inputs)

    def unwatch_routers(self) -> None:
        """Stop counting. Graphs run to their end again."""
        self.session.unwatch()

    def router_counts(self) -> RouterCounts:
        """Return what has been counted since `watch_routers`."""
        session = self.session
        outputs = None
        if (sums := session.output_norms) is not None:
            norms, norms_rest, weighted, weighted_rest = sums
            outputs = OutputNorms(norms, weighted, norms_rest, weighted_rest)
        return RouterCounts(session.histograms, session.weight_sum, session.weight_sum_rest, outputs)

    def input_sums(self) -> dict[str, ImatrixEntry]:
        """Return the squared inputs of all matrices since `watch_routers`, by the tensor's name.

        Raises:
            CoeError: Some are not finite.
        """
        entries = {}
        for name, (sums, counts) in (self.session.input_sums or {}).items():
            if not np.isfinite(sums).all():
                raise CoeError(f"{self.moe.path}: {name} has inputs that are not finite; the model is damaged")
            entries[name] = ImatrixEntry(sums.astype(np.float32), counts.astype(np.float32))
        return entries


Model = LoadedModel
"""The public name of LoadedModel."""


def as_window(tokens: Sequence[int] | Tokens) -> Tokens:
    """Return token ids as an array.

    Raises:
        InputError: One does not fit into 32 bits.
    """
    try:
        return np.asarray(tokens, dtype=np.int32)
    except OverflowError as error:
        raise InputError("a token id is outside every vocabulary") from error


def _servers_in_use() -> set[str]:
    """Return the rpc-servers that serve this process now. They would not answer another client."""
    return {server for model in _open_models if model._open_session for server in model.options.rpc}
