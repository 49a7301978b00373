"""A model loaded in llama.cpp: run tokens, look at logits, apply and take away a live mask."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native._native import core
from coe_native.cores import available_cores
from coe_native.corpus.batching import Batch, Tokens, batches
from coe_native.corpus.documents import Message
from coe_native.errors import CoeError, InputError
from coe_native.llama.chat import ChatTemplate
from coe_native.llama.deep_stack import with_stack_for
from coe_native.llama.memory import advice_for_gpu, check_context
from coe_native.llama.rpc import check_servers
from coe_native.masks.check import check_cut
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import MoeModel
from coe_native.routing.profile import OutputNorms

_MOST_TOKENS = 1 << 22
"""Of a vocabulary; the largest have some 2^18."""

_living: weakref.WeakSet[Model] = weakref.WeakSet()


@dataclass(frozen=True)
class RouterCounts:
    """What a watched model has counted, as RoutingProfile has it."""

    histograms: NDArray[np.int64]
    weight_sum: NDArray[np.float64]
    weight_sum_rest: NDArray[np.float64]
    outputs: OutputNorms | None


@dataclass(frozen=True)
class Distributions:
    """What a model expects in the places of a window from index `first` on: `logits`, float32
    [n_tokens - first, n_vocab], and `normalisers`, float64 [n_tokens - first]: what to take from a place's logits
    to have natural log-probabilities."""

    window: Tokens
    first: int
    logits: NDArray[np.float32]
    normalisers: NDArray[np.float64]

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Of the window's own tokens, float64 [n_tokens - first]."""
        tokens = self.window[self.first :]
        return np.asarray(self.logits[np.arange(len(tokens)), tokens] - self.normalisers)


class Model:
    """A parent or specialist, loaded. Use it in a ``with`` block, or call `close`.

    `n_ctx`: tokens of the longest window. `n_batch`: tokens computed at once (llama.cpp's batch and ubatch);
    at least `n_ctx` for encoders and diffusion models, which need a window in one piece.
    `n_sequences`: windows that may share a batch. `n_threads`: default, all cores. `n_gpu_layers`: negative
    for all. `n_cpu_moe`: so many first blocks keep their experts in host memory, negative for all blocks.
    `devices`: llama.cpp's device names, default all. `rpc`: llama.cpp's rpc-servers, ``HOST:PORT``, whose devices
    come before this machine's. `f32_kv`: keys and values in F32, not F16, where
    rounding matters more than memory. `repack`: lets llama.cpp keep copies of quantised weights in a layout
    that its CPU code reads faster; without, weights stay in the file's pages. `mtp`: loads the layers that
    predict further tokens too, though nothing here runs them. `tokenizer_only`: reads no weights, to
    tokenize and render conversations without waiting for them.

    Not to be used from two threads at once. Raises InputError for a file that can't be read, has no experts,
    or that llama.cpp refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_sequences: int = 1,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        n_cpu_moe: int = 0,
        devices: Sequence[str] = (),
        rpc: Sequence[str] = (),
        f32_kv: bool = False,
        repack: bool = True,
        mtp: bool = False,
        tokenizer_only: bool = False,
    ) -> None:
        if n_ctx < 1 or n_batch < 1 or n_sequences < 1:
            raise InputError("the context, the batch and the number of sequences must be at least 1")
        self.moe = MoeModel(path)
        self.n_ctx = n_ctx
        self.mask: ExpertMask | None = None
        """The live mask in force."""
        if not self.moe.is_causal:
            n_batch = max(n_batch, n_ctx)
        # llama.cpp gives every sequence an output of each batch.
        self.n_sequences = min(n_sequences, n_batch)
        self._placement: dict[str, Any] = {
            "n_threads": n_threads,
            "n_gpu_layers": n_gpu_layers,
            "n_cpu_moe": n_cpu_moe,
            "devices": tuple(devices),
            "rpc": tuple(rpc),
            "f32_kv": f32_kv,
            "repack": repack,
            "mtp": mtp,
        }
        check_servers(set(rpc) - self._servers_in_use())
        gpu_memory = core.free_gpu_memory() if n_gpu_layers else 0
        if self.moe.is_causal and not gpu_memory and not rpc:
            check_context(self.moe, max(n_ctx, n_batch), n_batch, bytes_of_value=4 if f32_kv else 2)
        try:
            self._open_session: core.Session | None = core.Session(
                os.fsencode(path),
                n_ctx=max(n_ctx, n_batch),
                n_batch=n_batch,
                n_seq_max=self.n_sequences,
                n_threads=n_threads or available_cores(),
                n_gpu_layers=n_gpu_layers,
                n_cpu_moe=n_cpu_moe,
                devices=list(devices),
                rpc=list(rpc),
                f32_kv=f32_kv,
                repack=repack,
                mtp=mtp,
                simulate=tokenizer_only,
            )
        except RuntimeError as error:
            advice = advice_for_gpu(self.moe, gpu_memory, n_ctx) if gpu_memory and "alloc" in str(error) else ""
            raise InputError(f"{path}: {error}{advice}") from error
        _living.add(self)
        self.n_batch = self._session.n_batch
        self.n_vocab = self._session.n_vocab
        self.predicts = self._session.has_memory and self.moe.is_causal
        """Whether a token's output depends on those before it only: no perplexity else."""

    @staticmethod
    def _servers_in_use() -> set[str]:
        """Those that have answered this process and serve it now. They would not answer another."""
        return {server for model in _living if model._open_session for server in model._placement["rpc"]}

    @property
    def _session(self) -> core.Session:
        if self._open_session is None:
            raise CoeError(f"{self.moe.path}: the model has been closed")
        return self._open_session

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def like(self, path: str | Path) -> Model:
        """Another file, loaded with this model's options."""
        return Model(path, n_ctx=self.n_ctx, n_batch=self.n_batch, n_sequences=self.n_sequences, **self._placement)

    def close(self) -> None:
        """Frees the model's memory. Closing twice does no harm."""
        if "_chat_template" in self.__dict__:
            self._chat_template.close()
        self._open_session = None

    def tokenize(self, text: str, *, parse_special: bool = False) -> Tokens:
        """The tokens of a text, int32 [n_tokens], with BOS and EOS where the model's habit has them.

        Raises InputError for a model without a tokenizer.
        """
        session = self._session
        if not session.has_tokenizer:
            raise InputError(
                f"{self.moe.path}: has no tokenizer; give token ids (.npy, or .jsonl with tokens) instead of text"
            )
        data = text.encode("utf-8")
        with self._named():
            tokens = with_stack_for(data, lambda: session.tokenize(data, parse_special))
        bos, eos = session.bos_token, session.eos_token
        # A chat template may have written BOS already.
        head = [bos] if bos >= 0 and (len(tokens) == 0 or tokens[0] != bos) else []
        tail = [eos] if eos >= 0 else []
        return np.concatenate([np.array(head, np.int32), tokens, np.array(tail, np.int32)])

    @property
    def bos_token(self) -> int | None:
        """The token that the model's habit puts in front of a text, or None."""
        bos = self._session.bos_token
        return bos if bos >= 0 else None

    def token_text(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token. They may be a part of a character."""
        with self._named():
            return self._session.token_text(token)

    def ends(self, token: int) -> bool:
        """Whether a token ends a text or a turn."""
        return self._session.ends(token)

    def draw(self, sampler: core.Sampler) -> int:
        """The token that a sampler draws after the last decode."""
        with self._named():
            return sampler.next(self._session)

    def go_on(self, token: int, position: int) -> None:
        """Runs one more token of the sequence that runs."""
        one = np.array([token], np.int32)
        self.decode(Batch(one, np.array([position], np.int32), np.zeros(1, np.int32), 0))

    def render_chat(self, messages: tuple[Message, ...], *, reply: bool = False) -> str:
        """A conversation as text, by the chat template that the model carries; with `reply`, up to where the model
        is to answer, with its thinking closed. Raises InputError without a template."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        template = self._chat_template
        try:
            return template.render(turns, reply=reply)
        except InputError as error:
            raise InputError(f"{self.moe.path}: its chat template refused a conversation ({error})") from error

    @property
    def has_chat_template(self) -> bool:
        return bool(self._session.chat_template)

    @property
    def reply_prefill(self) -> str:
        """What a prompt for a raw API must end with for the model to answer without thinking: how its template
        begins an answer, with the thinking block closed. Raises InputError without a template."""
        question = (Message("user", "Hello"),)
        asked, answered = (self.render_chat(question, reply=reply) for reply in (False, True))
        return answered[len(asked) :] if answered.startswith(asked) else answered.rpartition("Hello")[2]

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        """Kept, because making it reads the whole vocabulary."""
        template = self._session.chat_template.decode(errors="replace")
        if not template:
            raise InputError(f"{self.moe.path}: has no chat template; give texts instead of messages")
        tokens = self.moe.files[0].get("tokenizer.ggml.tokens", [], most=_MOST_TOKENS)

        def token_text(key: str) -> str:
            index = self.moe.metadata(f"tokenizer.ggml.{key}_token_id")
            return str(tokens[index]) if isinstance(index, int) and index < len(tokens) else ""

        return ChatTemplate(template, bos=token_text("bos"), eos=token_text("eos"))

    def apply(self, mask: ExpertMask) -> None:
        """Makes the dropped experts unselectable from now on: the function that the pruned file will be.

        Raises InputError for a mask that was made for another model, or that the model can't be cut to.
        """
        check_cut(mask, self.moe)
        blocks = sorted(mask.kept)
        self._session.mask(blocks, [list(mask.kept[block]) for block in blocks], mask.n_experts)
        self.mask = mask

    def clear_mask(self) -> None:
        """All experts are selectable again."""
        self._session.unmask()
        self.mask = None

    def logits(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Logits behind each token of one window, float32 [n_tokens, n_vocab]. Raises InputError for a model
        that has none."""
        with self._named():
            parts = [self._session.logits(0, len(batch.tokens)) for batch in self._decode_window(tokens)]
        return np.concatenate(parts)

    def embeddings(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """The model's last hidden state behind each token of one window, float32 [n_tokens, n_embd]: what a
        model without logits (an encoder) has to say."""
        self._session.want_embeddings(True)
        try:
            with self._named():
                parts = [self._session.embeddings(0, len(batch.tokens)) for batch in self._decode_window(tokens)]
        finally:
            self._session.want_embeddings(False)
        return np.concatenate(parts)

    def outputs(self, tokens: Sequence[int] | Tokens) -> NDArray[np.float32]:
        """Logits, or the embeddings of a model that has no logits, float32 [n_tokens, width]."""
        parts = []
        for batch in self._decode_window(tokens):
            if not self._session.has_logits:
                return self.embeddings(tokens)
            parts.append(self._session.logits(0, len(batch.tokens)))
        return np.concatenate(parts)

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[str]]:
        """A list that holds, when the block has ended, the operations by which llama.cpp computed what ran in it:
        ``NAME KIND``, in order."""
        operations: list[str] = []
        self._session.record_graph(True)
        try:
            yield operations
        finally:
            operations += self._session.record_graph(False)

    def log_probabilities(self, tokens: Sequence[int] | Tokens, first: int = 1) -> NDArray[np.float64]:
        """Natural log-probability of the tokens from index `first` (1 or more) on, each given those before it
        in the window, float64 [n_tokens - first]."""
        window = _as_window(tokens)
        values = [np.empty(0)]
        for row, low, high in self._predictions(window, first):
            with self._named():
                values.append(self._session.log_probabilities(row, window[low + 1 : high + 1]))
        return np.concatenate(values)

    def distributions(self, tokens: Sequence[int] | Tokens, first: int = 1) -> Distributions:
        """What the model expects in the places of one window from index `first` (1 or more) on."""
        window = _as_window(tokens)
        logits = [np.empty((0, self.n_vocab), np.float32)]
        normalisers = [np.empty(0)]
        for row, low, high in self._predictions(window, first):
            with self._named():
                logits.append(self._session.logits(row, high - low))
                normalisers.append(self._session.normalisers(row, high - low))
        return Distributions(window, first, np.concatenate(logits), np.concatenate(normalisers))

    def compare(
        self, reference: Distributions
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """What `log_probabilities` gives for the reference's window, and how far the model is from the reference,
        which is another's, or this one's with another mask: KL(reference || model) in nats at each place, and
        whether both find the same token likeliest. Three arrays [n_tokens - first]."""
        window, first = reference.window, reference.first
        values = [np.empty(0)]
        kl = [np.empty(0)]
        same_top = [np.empty(0, np.bool_)]
        for row, low, high in self._predictions(window, first):
            rows = slice(low - first + 1, high - first + 1)
            with self._named():
                values.append(self._session.log_probabilities(row, window[low + 1 : high + 1]))
                divergence, same = self._session.divergences(
                    row, reference.logits[rows], reference.normalisers[rows]
                )
            kl.append(divergence)
            same_top.append(same)
        return np.concatenate(values), np.concatenate(kl), np.concatenate(same_top)

    def _predictions(self, window: Tokens, first: int) -> Iterator[tuple[int, int, int]]:
        """Runs a window, and gives for each of its batches the row of the first output that predicts a token from
        index `first` on, and the range of places in the window whose outputs do."""
        start = 0
        for batch in self._decode_window(window, first - 1):
            end = start + len(batch.tokens)
            low, high = max(start, first - 1), min(end, len(window) - 1)
            if high > low:
                yield low - start, low, high
            start = end

    def _decode_window(self, tokens: Sequence[int] | Tokens, first_output: int = 0) -> Iterator[Batch]:
        window = _as_window(tokens)
        if not 0 < len(window) <= self.n_ctx:
            raise InputError(f"a window has 1 to {self.n_ctx} tokens (n_ctx), not {len(window)}")
        start = 0
        for batch in batches([window], self.n_batch, 1):
            self.decode(batch, max(0, first_output - start))
            start += len(batch.tokens)
            yield batch

    def decode(self, batch: Batch, first_output: int = 0) -> None:
        """Runs one batch, with outputs from row `first_output` on; the last row has one always. Raises CoeError
        where llama.cpp fails or a router is not seen as it must be."""
        if batch.n_begun:
            self._session.reset()
        with self._named():
            self._session.decode(batch.tokens, batch.positions, batch.sequences, first_output)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of the compiled module as ours, with the model's name."""
        try:
            yield
        except CoeError:
            raise
        except ValueError as error:
            raise InputError(f"{self.moe.path}: {error}") from error
        except RuntimeError as error:
            raise CoeError(f"{self.moe.path}: {error}") from error

    def watch_routers(self, *, outputs: bool = False) -> None:
        """Starts counting choices from zero, with `outputs` also the norms of what the chosen experts put out,
        and stops computing each graph where nothing that counts follows. Raises CoeError where the routers are not
        what the header says."""
        layers = self.moe.routed_layers
        with self._named():
            self._session.watch(self.moe.blocks, self.moe.n_experts, [layer.top_k for layer in layers], outputs)

    def unwatch_routers(self) -> None:
        """Stops counting; graphs run to their end again."""
        self._session.unwatch()

    def router_counts(self) -> RouterCounts:
        """What has been counted since `watch_routers`."""
        session = self._session
        outputs = None
        if (sums := session.output_norms) is not None:
            norms, norms_rest, weighted, weighted_rest = sums
            outputs = OutputNorms(norms, weighted, norms_rest, weighted_rest)
        return RouterCounts(session.histograms, session.weight_sum, session.weight_sum_rest, outputs)


def _as_window(tokens: Sequence[int] | Tokens) -> Tokens:
    try:
        return np.asarray(tokens, dtype=np.int32)
    except OverflowError as error:
        raise InputError("a token id is outside every vocabulary") from error
