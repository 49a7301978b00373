"""Import routing statistics and masks of other tools as profiles and masks."""

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
from coe_native.importers.arrays import read_npz, read_safetensors
from coe_native.importers.reap import ReapStatistics, read_json, reap_statistics
from coe_native.importers.torch_file import read_torch
from coe_native.masks.check import check_mask
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.gguf_file import GgufFile, Tensor, begins_like_gguf
from coe_native.model.header import ModelHeader
from coe_native.model.limits import MOST_BLOCKS, MOST_EXPERTS
from coe_native.routing.corpus_record import CorpusRecord
from coe_native.routing.output_norms import OutputNorms
from coe_native.routing.profile import UNKNOWN, RoutingProfile

_COUNTS = re.compile(r"blk\.(0|[1-9]\d{0,5})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts", re.ASCII)
_MOST_NUMBERS = 1 << 22
"""Most elements of a tensor of counts or flags. 100 layers with 512 experts and eight ranks have a tenth."""

_EXACT = 2**24
"""From this number on, a 32-bit float cannot represent every integer."""


@dataclass(frozen=True)
class _Target:
    """The model that a file belongs to, or what is assumed about it."""

    path: Path
    model: ModelHeader | None
    n_experts: int | None

    def blocks(self, n_layers: int) -> tuple[int, ...]:
        """Return the block of each layer: those of the model, or the first ones if there is no model."""
        if self.model is None:
            return tuple(range(n_layers))
        if len(self.model.blocks) != n_layers:
            raise InputError(
                f"{self.path}: has {n_layers} layers, and {self.model.path} has {len(self.model.blocks)} MoE "
                "layers; it is of another model"
            )
        return tuple(self.model.blocks)

    @property
    def architecture(self) -> str:
        """Return the model's architecture, or UNKNOWN."""
        return UNKNOWN if self.model is None else self.model.architecture

    @property
    def fingerprint(self) -> str:
        """Return the model's fingerprint, or UNKNOWN."""
        return UNKNOWN if self.model is None else self.model.fingerprint

    @property
    def name(self) -> str:
        """Return the model's name; empty if there is no model."""
        return "" if self.model is None else self.model.name


def import_file(
    path: str | Path, *, model: ModelHeader | None = None, n_experts: int | None = None
) -> RoutingProfile | ExpertMask:
    """Import a file of another tool as a profile or a mask. Nothing in the file is executed.

    - A GGUF file of llama-imatrix becomes a profile of counts, without ranks and weights.
    - Counts become a profile without weights: a tensor [layer, expert, rank]; or one [layer, expert], without
      ranks, for which the model must be given. They may also be a list or a dict with a tensor for each layer,
      and floats that are whole numbers.
    - A list with an index tensor for each layer, or a boolean tensor [layer, expert], becomes a mask.

    - The state of REAP's observer, or the JSON of llama-expert-profile, becomes a profile without ranks.

    Tensors may be in a file of torch.save, ``.npz`` or ``.safetensors``.

    Args:
        path: The file.
        model: The model that it belongs to, against which it is checked. None: layers are numbered from 0,
            and a mask fits any model of its shape.
        n_experts: Experts of a layer, if neither the file nor a model gives them.

    Raises:
        InputError: The file is of another kind, is damaged, or does not fit the model.
    """
    path = Path(path)
    target = _Target(path, model, n_experts if model is None else model.n_experts)
    if begins_like_gguf(path):
        return _profile_of_imatrix(GgufFile(path), target)
    try:
        held = _read(path)
        statistics = reap_statistics(held, path)
        if statistics is not None:
            return _profile_of_reap(statistics, target)
        if path.suffix.lower() == ".json":
            raise InputError("is JSON, but not llama-expert-profile's; masks of coe-native need no import")
        value = _only_value(held, target)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from error
    counts = _counts(value, target.n_experts)
    if counts is not None:
        return _profile_of_histograms(counts, target)
    kept = _kept(value)
    if kept is None:
        raise InputError(
            f"{path}: holds neither counts (whole numbers [layer, expert, rank] or [layer, expert]) nor a mask (a "
            "list with an index tensor for each layer, or a boolean tensor [layer, expert])"
        )
    return _mask_of_kept(kept, value, target)


def _read(path: Path) -> Any:
    """Read a file by its ending; others are torch.save's."""
    match path.suffix.lower():
        case ".json":
            return read_json(path)
        case ".npz":
            return read_npz(path)
        case ".safetensors":
            return read_safetensors(path)
        case _:
            return read_torch(path)


def _counts(value: Any, n_experts: int | None) -> NDArray[np.int64] | None:
    """Return counts [layer, expert, rank] or [layer, expert], or None if the value is something else.

    One-dimensional tensors in a list are counts if each has an entry for each expert, and does not list different
    experts.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(row, np.ndarray) for row in value):
        shapes = {row.shape for row in value}
        if len(shapes) != 1 or sum(row.size for row in value) > _MOST_NUMBERS:
            return None
        (shape,) = shapes
        is_counts = len(shape) == 2 or (
            len(shape) == 1
            and (n_experts is None or shape[0] == n_experts)
            and any(len(np.unique(row)) < len(row) or row.max(initial=0) >= len(row) for row in value)
        )
        if not is_counts:
            return None
        value = np.stack(value)
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3) or value.dtype.kind not in "iuf":
        return None
    if value.size > _MOST_NUMBERS:
        return None
    if value.dtype.kind == "f":
        largest = 2 ** (np.finfo(value.dtype).nmant + 1)
        with np.errstate(invalid="ignore"):  # NaN fails the comparisons
            if not ((value >= 0) & (value <= largest) & (value == np.floor(value))).all():
                return None
    return np.ascontiguousarray(value, np.int64)


def _only_value(value: Any, target: _Target) -> Any:
    """Return the only usable entry of a dict, or a list of all entries if its keys are layers."""
    if not isinstance(value, Mapping):
        return value
    try:
        by_layer = {int(key): value[key] for key in value}
    except (TypeError, ValueError):
        by_layer = {}
    if by_layer:
        numbers = sorted(by_layer)
        blocks = [] if target.model is None else target.model.blocks
        if numbers not in (blocks, list(range(len(numbers)))):
            of_model = f"those of {target.model.path} are {blocks}" if target.model else "pass --model"
            raise InputError(f"has layers {numbers}, which are not counted from 0; {of_model}")
        return [by_layer[number] for number in numbers]
    if len(value) > MOST_BLOCKS:
        raise InputError(f"has {len(value)} entries; save only the one to import")
    known: _Known = {}
    useful = {
        str(key): entry
        for key, entry in value.items()
        if _kept(entry, known) is not None or _counts(entry, None) is not None
    }
    if len(useful) > 1:
        names = ", ".join(map(reprlib.repr, list(useful)[:10]))
        raise InputError(f"has several entries that could be imported: {names}; save only one")
    return next(iter(useful.values()), None)


_Known = dict[int, "list[int] | None"]
"""Rows by the ids of the objects that they were made from. A small file can list one row a million times."""


def _kept(value: Any, known: _Known | None = None) -> list[list[int]] | None:
    """Return the kept experts of each layer, or None if the value is not a mask or is too large."""
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
    """Return the experts that a row lists or flags, ascending, or None if it is not such a row."""
    row = _row(entry)
    if row is None or row.ndim != 1 or not 0 < row.size <= MOST_EXPERTS or row.dtype.kind not in "iub":
        return None
    return sorted(np.flatnonzero(row).tolist() if row.dtype.kind == "b" else row.tolist())


def _row(entry: Any) -> NDArray[Any] | None:
    """Return a tensor, or a list of integers as one. Other lists may hold anything, even themselves."""
    if isinstance(entry, np.ndarray):
        return entry
    if not isinstance(entry, list | tuple) or not all(type(n) is int and 0 <= n < MOST_EXPERTS for n in entry):
        return None
    return np.array(entry, np.int64)


def _profile_of_histograms(counts: NDArray[Any], target: _Target) -> RoutingProfile:
    if target.n_experts not in (None, counts.shape[1]):
        raise InputError(f"{target.path}: has {counts.shape[1]} experts in a layer, not {target.n_experts}")
    if (
        not 0 < counts.size <= _MOST_NUMBERS
        or counts.shape[1] > MOST_EXPERTS
        or counts.min() < 0
        or not 0 < counts.max() < 2**62
    ):
        raise InputError(f"{target.path}: has numbers that cannot be counts of choices")
    blocks = target.blocks(len(counts))
    if counts.ndim == 3 and target.model is not None and counts.shape[2] != target.model.top_k:
        raise InputError(
            f"{target.path}: has {counts.shape[2]} ranks, and {target.model.path} chooses {target.model.top_k} "
            "experts for a token"
        )
    if counts.ndim == 2 and counts.max() == 1:
        raise InputError(f"{target.path}: has zeros and ones alone; save a mask with booleans")
    if counts.ndim == 3:
        return _profile(counts, int(counts[0, :, 0].sum()), blocks, None, target)
    if target.model is None:
        raise InputError(
            f"{target.path}: has counts without ranks, so pass --model: it tells the experts of a token"
        )
    top_k = target.model.top_k
    n_tokens, rest = divmod(int(counts[0].sum()), top_k)
    if rest:
        raise InputError(
            f"{target.path}: has {counts[0].sum()} choices in a layer, which are not {top_k} for each token"
        )
    return _profile(counts[:, :, np.newaxis], n_tokens, blocks, top_k, target)


def _profile_of_reap(found: ReapStatistics, target: _Target) -> RoutingProfile:
    if target.n_experts not in (None, found.counts.shape[1]):
        raise InputError(f"{target.path}: has {found.counts.shape[1]} experts in a layer, not {target.n_experts}")
    model = target.model
    if model is not None and (list(found.blocks), found.top_k) != (model.blocks, model.top_k):
        raise InputError(
            f"{target.path}: is of blocks {list(found.blocks)} with {found.top_k} experts chosen for a token, and "
            f"{model.path} has {model.blocks} with {model.top_k}"
        )
    return _profile(found.counts[:, :, np.newaxis], max(found.tokens), found.blocks, found.top_k, target, found)


def _profile(
    histograms: NDArray[np.int64],
    n_tokens: int,
    blocks: tuple[int, ...],
    n_chosen: int | None,
    target: _Target,
    reap: ReapStatistics | None = None,
) -> RoutingProfile:
    shape = None if target.model is None else target.model.router_shape
    try:
        return RoutingProfile(
            architecture=target.architecture,
            model_name=target.name,
            fingerprint=target.fingerprint,
            layers=blocks,
            n_tokens=n_tokens,
            histograms=histograms,
            weight_sum=np.zeros(histograms.shape) if reap is None else reap.sums["weights"][:, :, np.newaxis],
            corpora=(CorpusRecord(name=target.path.name, documents=0, tokens=n_tokens, sha256=""),),
            n_groups=1 if shape is None else shape.n_groups,
            n_groups_used=1 if shape is None else shape.n_groups_used,
            place=str(target.path),
            has_weights=reap is not None,
            n_chosen=n_chosen,
            layer_tokens=() if reap is None else reap.tokens,
            outputs=None if reap is None else OutputNorms(reap.sums["norms"], reap.sums["weighted_norms"]),
        )
    except InputError as error:
        raise InputError(
            f"{target.path}: its counts are not of one text: all layers must have equally many choices, "
            "and each rank as many as there are tokens"
        ) from error


def _mask_of_kept(kept: list[list[int]], value: Any, target: _Target) -> ExpertMask:
    n_experts = target.n_experts
    of_flags = value if isinstance(value, np.ndarray) else value[0]
    if isinstance(of_flags, np.ndarray) and of_flags.dtype.kind == "b":
        n_experts = of_flags.shape[-1]
        if target.n_experts not in (None, n_experts):
            raise InputError(f"{target.path}: has {n_experts} experts in a layer, not {target.n_experts}")
    if n_experts is None:
        raise InputError(
            f"{target.path}: does not say how many experts a layer has; pass --experts N or --model MODEL"
        )
    if len({len(row) for row in kept}) != 1:
        raise InputError(
            f"{target.path}: keeps different numbers of experts in its layers; all must keep the same number"
        )
    try:
        mask = ExpertMask(
            architecture=target.architecture,
            fingerprint=target.fingerprint,
            n_experts=n_experts,
            keep=len(kept[0]),
            kept={block: tuple(row) for block, row in zip(target.blocks(len(kept)), kept, strict=True)},
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


def _profile_of_imatrix(file: GgufFile, target: _Target) -> RoutingProfile:
    if file.get("general.type") != "imatrix":
        raise InputError(
            f"{file.path}: is not a llama-imatrix file (its type is {file.get('general.type')!r:.40})"
        )
    counts: dict[int, NDArray[np.int64]] = {}
    dense = 0
    for tensor in file.tensors:
        match = _COUNTS.fullmatch(tensor.name)
        if match is None:
            if tensor.name.endswith(".counts") and math.prod(tensor.shape) == 1:
                dense = max(dense, int(_exact_counts(file, tensor)[0]))
            continue
        if not 1 < math.prod(tensor.shape) <= MOST_EXPERTS:
            raise InputError(f"{file.path}: {tensor.name} does not hold counts of experts")
        of_layer = _exact_counts(file, tensor)
        if not np.array_equal(counts.setdefault(int(match[1]), of_layer), of_layer):
            raise InputError(f"{file.path}: {tensor.name} and another tensor of the block have different counts")
    blocks = tuple(sorted(counts))
    if target.model is not None and list(blocks) != target.model.blocks:
        raise InputError(
            f"{file.path}: counts experts in blocks {list(blocks)}, which are not the layers of "
            f"{target.model.path}"
        )
    if not counts or len({len(of_layer) for of_layer in counts.values()}) != 1:
        raise InputError(f"{file.path}: has no counts of experts, or different numbers of experts in its layers")
    n_tokens = _tokens_of_imatrix(file, dense)
    chosen = {block: int(of_layer.sum()) for block, of_layer in counts.items()}
    uneven = [block for block, total in chosen.items() if total % n_tokens or not total]
    if uneven:
        raise InputError(
            f"{file.path}: blocks {uneven} did not see all of its {n_tokens} tokens (llama.cpp skips tokens in "
            "the last layer if their output is not requested); make it with llama-imatrix, without --no-ppl"
        )
    histograms = np.array([counts[block] for block in blocks])[:, :, np.newaxis]
    if target.n_experts not in (None, histograms.shape[1]):
        raise InputError(f"{target.path}: has {histograms.shape[1]} experts in a layer, not {target.n_experts}")
    top_k = max(chosen.values()) // n_tokens
    if target.model is not None and top_k != target.model.top_k:
        raise InputError(
            f"{file.path}: has {top_k} choices for each of its {n_tokens} tokens, but {target.model.path} chooses "
            f"{target.model.top_k}"
        )
    return _profile(histograms, n_tokens, blocks, top_k, target)


def _exact_counts(file: GgufFile, tensor: Tensor) -> NDArray[np.int64]:
    """Return a tensor of counts, which llama-imatrix writes as floats.

    Raises:
        InputError: They are not whole numbers, or so large that floats skip some.
    """
    if tensor.type_name != "F32":
        raise InputError(f"{file.path}: {tensor.name} does not hold counts")
    with file.open() as opened:
        values = np.frombuffer(read_exactly(opened, tensor.offset, tensor.n_bytes), "<f4")
    with np.errstate(invalid="ignore"):  # NaN fails the comparisons
        exact = (values >= 0) & (values < _EXACT) & (values == np.floor(values))
    if not exact.all():
        raise InputError(f"{file.path}: {tensor.name} does not hold exact counts")
    return values.astype(np.int64)


def _tokens_of_imatrix(file: GgufFile, dense: int) -> int:
    """Return the number of tokens: the largest count of a dense matrix, else that of the chunks.

    llama-imatrix divides the former by the size of its own chunks, and rounds down.

    Raises:
        InputError: The file says neither, or they disagree.
    """
    chunks, size = (file.get(f"imatrix.chunk_{what}") for what in ("count", "size"))
    has_chunks = isinstance(chunks, int) and isinstance(size, int) and chunks >= 0 and size > 0
    if dense and has_chunks and dense // size != chunks:
        raise InputError(f"{file.path}: counts {dense} tokens, but says that they are {chunks} chunks of {size}")
    n_tokens = dense or (chunks * size if has_chunks else 0)
    if n_tokens <= 0:
        raise InputError(f"{file.path}: does not say how many tokens were counted")
    return n_tokens
