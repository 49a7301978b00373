"""Routing statistics and masks that other tools have made, as ours."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.importers.torch_file import read_torch
from coe_native.masks.check import check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import GgufFile, begins_like_gguf
from coe_native.model.header import ModelHeader
from coe_native.model.limits import MOST_BLOCKS, MOST_EXPERTS
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.profile import UNKNOWN, RoutingProfile

_COUNTS = re.compile(r"blk\.(0|[1-9]\d{0,5})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts", re.ASCII)
_MOST_NUMBERS = 1 << 22
"""Of a tensor of counts or flags: 100 layers with eight ranks of 512 experts have a tenth."""

_EXACT = 2**24
"""From here on, a float of 32 bits does not count every one."""


@dataclass(frozen=True)
class _Target:
    """The model that something is of, or what is assumed of it."""

    path: Path
    model: ModelHeader | None
    n_experts: int | None

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """The block of each layer: the model's MoE layers, or, of no model, the first ones."""
        if self.model is None:
            return tuple(range(n_layers))
        if len(self.model.blocks) != n_layers:
            raise InputError(
                f"{self.path}: has {n_layers} layers, and {self.model.path} {len(self.model.blocks)} MoE layers; "
                "it is of another model"
            )
        return tuple(self.model.blocks)

    @property
    def architecture(self) -> str:
        return UNKNOWN if self.model is None else self.model.architecture

    @property
    def fingerprint(self) -> str:
        return UNKNOWN if self.model is None else self.model.fingerprint

    @property
    def name(self) -> str:
        return "" if self.model is None else self.model.name


def import_file(
    path: str | Path, *, model: ModelHeader | None = None, n_experts: int | None = None
) -> RoutingProfile | ExpertMask:
    """What another tool has counted, or masked, as a profile or a mask:

    - a GGUF file of llama-imatrix: a profile of counts, without ranks and weights;
    - a file of torch.save with an integer tensor [layer, expert, rank]: a profile of counts, without weights;
    - one with a list of index tensors, one for each layer, or a boolean tensor [layer, expert]: a mask.

    With `model`, it is said to be of that model, and checked against it; else layers are numbered from 0, and a
    mask fits any model of its shape. `n_experts`: of a layer, where the file does not say. Raises InputError for
    anything else; nothing in a file is executed.
    """
    path = Path(path)
    target = _Target(path, model, n_experts if model is None else model.n_experts)
    if begins_like_gguf(path):
        return _of_imatrix(GgufFile(path), target)
    try:
        value = _only_value(read_torch(path))
    except InputError as error:
        told = str(error)
        raise InputError(told if told.startswith(str(path)) else f"{path}: {told}") from error
    if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype.kind in "iu":
        return _of_histograms(value, target)
    kept = _kept(value)
    if kept is None:
        raise InputError(
            f"{path}: holds neither counts (an integer tensor [layer, expert, rank]) nor a mask (a list of one "
            "index tensor a layer, or a boolean tensor [layer, expert])"
        )
    return _of_kept(kept, value, target)


def _only_value(value: Any) -> Any:
    """What a dict with one entry of use holds, or the list that a dict with an entry for each layer stands for."""
    if not isinstance(value, Mapping):
        return value
    try:
        return [value[key] for key in sorted(value, key=int)]
    except (TypeError, ValueError):
        pass
    if len(value) > MOST_BLOCKS:
        raise InputError(f"holds {len(value)} entries; save the one that is meant alone")
    known: _Known = {}
    useful = {
        str(key): entry
        for key, entry in value.items()
        if _kept(entry, known) is not None
        or (isinstance(entry, np.ndarray) and entry.ndim == 3 and entry.dtype.kind in "iu")
    }
    if len(useful) > 1:
        names = ", ".join(map(reprlib.repr, list(useful)[:10]))
        raise InputError(f"holds several of them: {names}; save one alone")
    return next(iter(useful.values()), None)


_Known = dict[int, "list[int] | None"]
"""Rows by the ids of what they were made of: a small file can show one row a million times."""


def _kept(value: Any, known: _Known | None = None) -> list[list[int]] | None:
    """The kept experts of each layer, or None for what is no mask, or of no model's size."""
    known = {} if known is None else known
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype.kind == "b":
        if value.size > _MOST_NUMBERS:
            return None
        return [np.flatnonzero(row).tolist() for row in value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= MOST_BLOCKS:
        return None
    kept = []
    for entry in value:
        if id(entry) not in known:
            known[id(entry)] = _experts(entry)
        experts = known[id(entry)]
        if experts is None:
            return None
        kept.append(experts)
    return kept


def _experts(entry: Any) -> list[int] | None:
    """The experts that a row lists or flags."""
    row = _row(entry)
    if row is None or row.ndim != 1 or not 0 < row.size <= MOST_EXPERTS or row.dtype.kind not in "iub":
        return None
    return sorted(np.flatnonzero(row).tolist() if row.dtype.kind == "b" else row.tolist())


def _row(entry: Any) -> NDArray[Any] | None:
    """A tensor, or a list of whole numbers as one; others may hold anything, themselves included."""
    if isinstance(entry, np.ndarray):
        return entry
    if not isinstance(entry, list | tuple) or not all(type(n) is int and 0 <= n < MOST_EXPERTS for n in entry):
        return None
    return np.array(entry, np.int64)


def _of_histograms(counts: NDArray[Any], target: _Target) -> RoutingProfile:
    if target.n_experts not in (None, counts.shape[1]):
        raise InputError(f"{target.path}: has {counts.shape[1]} experts in a layer, not {target.n_experts}")
    if (
        not 0 < counts.size <= _MOST_NUMBERS
        or counts.shape[1] > MOST_EXPERTS
        or counts.min() < 0
        or not 0 < counts.max() < 2**62
    ):
        raise InputError(f"{target.path}: holds what are no counts of choices")
    histograms = np.ascontiguousarray(counts, np.int64)
    n_tokens = int(histograms[0, :, 0].sum())
    return _profile(histograms, n_tokens, target.blocks(len(histograms)), None, target)


def _profile(
    histograms: NDArray[np.int64], n_tokens: int, blocks: tuple[int, ...], n_chosen: int | None, target: _Target
) -> RoutingProfile:
    shape = None if target.model is None else target.model.router_shape
    try:
        return RoutingProfile(
            target.architecture,
            target.name,
            target.fingerprint,
            blocks,
            n_tokens,
            histograms,
            np.zeros(histograms.shape),
            (CorpusRecord(target.path.name, 0, n_tokens, ""),),
            1 if shape is None else shape.n_groups,
            1 if shape is None else shape.n_groups_used,
            str(target.path),
            has_weights=False,
            n_chosen=n_chosen,
        )
    except InputError as error:
        raise InputError(
            f"{target.path}: its counts are not of one text: all layers must have as many choices, "
            "each rank as many as there are tokens"
        ) from error


def _of_kept(kept: list[list[int]], value: Any, target: _Target) -> ExpertMask:
    n_experts = target.n_experts
    of_flags = value if isinstance(value, np.ndarray) else value[0]
    if isinstance(of_flags, np.ndarray) and of_flags.dtype.kind == "b":
        n_experts = of_flags.shape[-1]
        if target.n_experts not in (None, n_experts):
            raise InputError(f"{target.path}: has {n_experts} experts in a layer, not {target.n_experts}")
    if n_experts is None:
        raise InputError(
            f"{target.path}: does not say how many experts a layer has: --experts N, or --model MODEL"
        )
    if len({len(row) for row in kept}) != 1:
        raise InputError(f"{target.path}: keeps unlike numbers of experts in its layers, which no file can have")
    try:
        mask = ExpertMask(
            target.architecture,
            target.fingerprint,
            n_experts,
            len(kept[0]),
            {block: tuple(row) for block, row in zip(target.blocks(len(kept)), kept, strict=True)},
            provenance={"imported": target.path.name},
            place=str(target.path),
        )
    except InputError as error:
        raise InputError(
            f"{target.path}: {error}".replace(f"{target.path}: {target.path}", str(target.path))
        ) from error
    if target.model is not None:
        check_mask(mask, target.model)
    return mask


def _of_imatrix(file: GgufFile, target: _Target) -> RoutingProfile:
    if file.get("general.type") != "imatrix":
        raise InputError(
            f"{file.path}: is no file of llama-imatrix (its type is {file.get('general.type')!r:.40})"
        )
    chunks, size = (file.get(f"imatrix.chunk_{what}") for what in ("count", "size"))
    if not isinstance(chunks, int) or not isinstance(size, int) or chunks * size <= 0:
        raise InputError(f"{file.path}: does not say how many tokens it has seen")
    counts: dict[int, NDArray[np.int64]] = {}
    for tensor in file.tensors:
        match = _COUNTS.fullmatch(tensor.name)
        if match is None or int(match[1]) in counts:
            continue
        if tensor.type_name != "F32" or not 1 < math.prod(tensor.shape) <= MOST_EXPERTS:
            raise InputError(f"{file.path}: {tensor.name} holds no counts of experts")
        with file.open() as opened:
            values = np.frombuffer(read_exactly(opened, tensor.offset, tensor.n_bytes), "<f4")
        with np.errstate(invalid="ignore"):  # of what is no number
            exact = (values >= 0) & (values < _EXACT) & (values == np.floor(values))
        if not exact.all():
            raise InputError(f"{file.path}: {tensor.name} holds no exact counts of experts")
        counts[int(match[1])] = values.astype(np.int64)
    blocks = tuple(sorted(counts))
    if target.model is not None and list(blocks) != target.model.blocks:
        raise InputError(
            f"{file.path}: counts experts in blocks {list(blocks)}, which are not those of {target.model.path}"
        )
    if not counts or len({len(of_layer) for of_layer in counts.values()}) != 1:
        raise InputError(f"{file.path}: counts no experts, or unlike numbers of them in its layers")
    n_tokens = chunks * size
    chosen = {block: int(of_layer.sum()) for block, of_layer in counts.items()}
    uneven = [block for block, total in chosen.items() if total % n_tokens or not total]
    if uneven:
        raise InputError(
            f"{file.path}: blocks {uneven} did not see all of its {n_tokens} tokens (llama.cpp computes a last "
            "layer for few of them where nobody asks for output); make it with llama-imatrix, without --no-ppl"
        )
    histograms = np.array([counts[block] for block in blocks])[:, :, np.newaxis]
    if target.n_experts not in (None, histograms.shape[1]):
        raise InputError(f"{target.path}: has {histograms.shape[1]} experts in a layer, not {target.n_experts}")
    return _profile(histograms, n_tokens, blocks, max(chosen.values()) // n_tokens, target)
