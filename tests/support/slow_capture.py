"""An independent, slow capture: a ctypes callback copies every id and weight, NumPy sums them.

It shares no code with the tap: it looks at every candidate node of every graph, runs one document at a time
with all logits and without an early end, and ranks by a stable sort. Norms of what the experts put out it takes in
double precision.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from support.bare_host import BareHost


class Tensor(ctypes.Structure):
    """ggml_tensor of the pinned release."""


Tensor._fields_ = [
    ("type", ctypes.c_int32),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int32),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]

_NODE = re.compile(
    r"ffn_moe_(topk|weights|weights_softmax|weights_norm|down|down_scaled|down_biased|weighted)-(\d+)"
)
_LAST_WINS = ("weights", "weights_softmax", "weights_norm")
_OUTPUTS = ("down", "down_scaled", "down_biased")


class SlowCapture:
    """Choices of one model: `ids` and `weights` by block, each a list of [k, n_tokens] arrays in order."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        self.nodes: dict[tuple[str, int], list[NDArray[np.generic]]] = {}
        self._seen: set[tuple[str, int]] = set()
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._see)
        self._host = BareHost(path, self._callback, n_ctx=n_ctx, n_ubatch=n_ctx)

    def close(self) -> None:
        self._host.close()

    def _see(self, address: int, ask: bool, _: object) -> bool:
        tensor = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        match = _NODE.fullmatch(tensor.name.decode())
        if match and not ask:
            kind, block = match[1], int(match[2])
            # A second bank of experts in a layer (GroveMoE) has nodes of the same names, later in the graph.
            if (kind, block) not in self._seen:
                self._seen.add((kind, block))
                values = _strided(tensor, np.int32 if kind == "topk" else np.float32)
                if kind in (*_OUTPUTS, "weighted"):  # too much to keep
                    whole = values.astype(np.float64).reshape(-1, tensor.ne[1], tensor.ne[0])
                    values = np.sqrt((whole**2).sum(axis=-1))
                self.nodes.setdefault((kind, block), []).append(values)
        return bool(match) or not ask

    def run(self, documents: Sequence[Sequence[int]], n_ctx: int) -> None:
        """Every window of every document in a decode of its own, with all logits."""
        for document in documents:
            for start in range(0, len(document), n_ctx):
                self._seen.clear()
                self._host.run(document[start : start + n_ctx])

    def counts(self, block: int, n_experts: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Histogram and weight sums of one block, [expert, rank]."""
        ids = np.concatenate([part.reshape(-1, part.shape[-1]) for part in self.nodes["topk", block]])
        last = [kind for kind in _LAST_WINS if (kind, block) in self.nodes][-1]
        k = ids.shape[1]
        weights = np.concatenate([part.reshape(-1, k) for part in self.nodes[last, block]])
        order = np.argsort(-weights, axis=1, kind="stable")
        ids, weights = np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1)
        histogram = np.zeros((n_experts, k), np.int64)
        weight_sum = np.zeros((n_experts, k))
        for rank in range(k):
            np.add.at(histogram[:, rank], ids[:, rank], 1)
            np.add.at(weight_sum[:, rank], ids[:, rank], weights[:, rank].astype(np.float64))
        return histogram, weight_sum

    def output_norms(self, block: int, n_experts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of one block, [expert]: sums of the norms of what each put out, and of what it added to the layer."""
        ids = np.concatenate([part.reshape(-1, part.shape[-1]) for part in self.nodes["topk", block]])
        k = ids.shape[1]
        last = [kind for kind in _LAST_WINS if (kind, block) in self.nodes][-1]
        weights = np.concatenate([part.reshape(-1, k) for part in self.nodes[last, block]])
        last = [kind for kind in _OUTPUTS if (kind, block) in self.nodes][-1]
        norms, weighted = (
            np.concatenate([part.reshape(-1, k) for part in self.nodes[kind, block]])
            for kind in (last, "weighted")
        )
        products = weights.astype(np.float64) * norms
        seen = list(self.nodes)
        if seen.index(("weighted", block)) < seen.index((last, block)):
            products = norms  # it is the input that is weighted
        else:  # as the graph has it, up to a constant scale of the layer
            np.testing.assert_allclose(weighted / weighted.sum(), products / products.sum(), rtol=1e-4)
        sums = np.zeros(n_experts), np.zeros(n_experts)
        np.add.at(sums[0], ids, norms)
        np.add.at(sums[1], ids, products)
        return sums


class SlowInputs:
    """Squared inputs of one model's matrices, summed in double precision: [count, column] and counts by tensor."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._see)
        self._host = BareHost(path, self._callback, n_ctx=n_ctx, n_ubatch=n_ctx)

    def close(self) -> None:
        self._host.close()

    def run(self, documents: Sequence[Sequence[int]], n_ctx: int) -> None:
        for document in documents:
            for start in range(0, len(document), n_ctx):
                self._host.run(document[start : start + n_ctx])

    def _see(self, address: int, ask: bool, _: object) -> bool:
        node = ctypes.cast(address, ctypes.POINTER(Tensor)).contents
        if not node.src[0] or not node.src[1]:
            return not ask
        weights, inputs = node.src[0].contents, node.src[1].contents
        name = weights.name.decode()
        is_product = re.fullmatch(r"blk\.\d+\..*\.weight", name) and weights.ne[0] == inputs.ne[0]
        if not is_product or node.ne[0] != weights.ne[1]:
            return not ask
        if not ask:
            self._add(name, weights, inputs, node.src[2].contents if node.src[2] else None)
        return True

    def _add(self, name: str, weights: Tensor, inputs: Tensor, ids: Tensor | None) -> None:
        squares = _whole(inputs, np.float32).astype(np.float64) ** 2
        n_matrices = weights.ne[2] * weights.ne[3]
        if ids is None:
            assert n_matrices in (1, squares.shape[0] * squares.shape[1]), name
            flat = squares.reshape(n_matrices, -1, squares.shape[-1])
            self._sum(name, flat.sum(axis=1).reshape(1, -1), np.array([flat.shape[1]]))
            return
        sums, counts = np.zeros((n_matrices, squares.shape[-1])), np.zeros(n_matrices, np.int64)
        chosen = _whole(ids, np.int32)[0, 0]  # [token, rank]
        rows = np.broadcast_to(squares[0], (*chosen.shape, squares.shape[-1]))
        np.add.at(sums, chosen, rows)
        np.add.at(counts, chosen, 1)
        self._sum(name, sums, counts)

    def _sum(self, name: str, sums: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.sums[name] = self.sums.get(name, 0) + sums
        self.counts[name] = self.counts.get(name, 0) + counts


def _whole(tensor: Tensor, dtype: type) -> NDArray[np.generic]:
    """A copy of a host tensor with all its dimensions, slowest first."""
    return _strided(tensor, dtype).reshape(tuple(tensor.ne)[::-1])


def _strided(tensor: Tensor, dtype: type) -> NDArray[np.generic]:
    """A copy of a host tensor as NumPy sees it: slowest dimension first, strides followed."""
    n_bytes = sum((n - 1) * stride for n, stride in zip(tensor.ne, tensor.nb, strict=True)) + 4
    raw = (ctypes.c_uint8 * n_bytes).from_address(tensor.data)
    view = np.ndarray(tuple(tensor.ne)[::-1], dtype, raw, strides=tuple(tensor.nb)[::-1])
    return view.copy().reshape([n for n in view.shape if n != 1] or [1]) if view.ndim else view
