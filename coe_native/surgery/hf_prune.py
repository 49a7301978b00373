"""Prune a Hugging Face checkpoint: copy the bytes of the kept experts, and nothing is computed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coe_native.errors import CoeError, InputError, printable
from coe_native.files.atomic import check_space, working_directory
from coe_native.files.copying import copy_range
from coe_native.files.regular import open_regular
from coe_native.masks.expert_mask import ExpertMask
from coe_native.model.header import ModelHeader
from coe_native.model.hf_checkpoint import CONFIG, INDEX, HfCheckpoint
from coe_native.model.hf_experts import FLOATS, HfMoeLayer, find_moe_layers, kept_ranges, renumbered, without_ones
from coe_native.model.safetensors_file import SafetensorsFile, StoredTensor
from coe_native.surgery.hf_match import check_match, router_shape, router_values
from coe_native.surgery.notice import safety_notice
from coe_native.surgery.write import Report

RECORD = "coe_native.json"
"""The file of a pruned checkpoint that says what was done."""

_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz")
"""Ends of names of files that may hold the parent's weights once more."""

_SINGLE_EXPERT = re.compile(r"experts\W{0,9}[0-9]")
_ANY_NUMBER = re.compile(r"\\d|\[0-9\]")
"""In patterns of names, what stands for any number."""

_MAY_LIST_MODULES = (".json", ".yaml", ".yml")
_MOST_LISTED = 1 << 26
"""Bytes of a file beside the config that is looked at for names of modules. Vocabularies may be larger."""

_ALIGNMENT = 8
"""The header of a safetensors file is padded to a multiple of this."""


@dataclass(frozen=True)
class HfPruned:
    """What was written.

    Attributes:
        path: The directory.
        n_bytes: Bytes of all tensors.
        checked: Whether the routers were compared with those of the mask's model. Quantised ones cannot be.
        left_out: Files of the parent that were not copied, because they may hold its weights once more.
    """

    path: Path
    n_bytes: int
    checked: bool
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class HfPiece:
    """A tensor of a pruned checkpoint.

    Attributes:
        name: Its new name.
        shape: Its new shape.
        source: Where its bytes come from.
        ranges: Offsets in the source's file, and numbers of bytes.
    """

    name: str
    shape: tuple[int, ...]
    source: StoredTensor
    ranges: tuple[tuple[int, int], ...]

    @property
    def n_bytes(self) -> int:
        """Return its size in bytes."""
        return sum(n_bytes for _, n_bytes in self.ranges)


@dataclass(frozen=True)
class HfPlan:
    """What a pruned checkpoint consists of.

    Attributes:
        files: The parent's files, each with the tensors that it has then, in order.
        checked: Whether the routers were compared with those of the mask's model.
    """

    files: tuple[tuple[SafetensorsFile, tuple[HfPiece, ...]], ...]
    checked: bool

    @cached_property
    def n_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(piece.n_bytes for _, pieces in self.files for piece in pieces)


def prune_checkpoint(
    directory: str | Path,
    mask: ExpertMask,
    out: str | Path,
    *,
    gguf: str | Path | None = None,
    force: bool = False,
    inputs: tuple[Path, ...] = (),
    progress: Report = lambda done, total: None,
) -> HfPruned:
    """Write a checkpoint with the kept experts only.

    Kept tensors do not change. The config counts the kept experts, the index lists the new names, and other files
    are copied, except for those that may hold the parent's weights in another format.

    Args:
        directory: The parent: a directory with ``config.json`` and safetensors files.
        mask: The mask, made from a profile of the same model's GGUF.
        out: The directory to write.
        gguf: The model that the mask was made with: the checkpoint's routers may then differ from its by rounding,
            as those of an F16 copy of a BF16 checkpoint do. Without it they must be equal.
        force: Replace a directory that this function has written.
        inputs: Files that must not be in that directory.
        progress: Called with bytes done and bytes in all.

    Raises:
        InputError: The mask is of another model, a tensor may or may not have a dimension of experts, or `out`
            cannot be used.
        CoeError: The output cannot be written. No output is left.
    """
    parent, out = HfCheckpoint.read(directory), Path(out)
    _check_output(out, parent, force, inputs)
    plan = plan_checkpoint(parent, mask, gguf)
    check_space(out, plan.n_bytes)
    copied, left_out = _other_files(parent)
    with working_directory(out) as working:
        made = working / "checkpoint"
        made.mkdir()
        _write_weights(plan, made, progress)
        _write_json(made / CONFIG, parent.with_experts(mask.keep))
        if parent.index is not None:
            files = {piece.name: file.path.name for file, pieces in plan.files for piece in pieces}
            _write_json(
                made / INDEX,
                {
                    "metadata": _index_metadata(parent, plan),
                    "weight_map": dict(sorted(files.items())),
                },
            )
        _write_json(made / RECORD, {**record_of(mask), "notice": safety_notice(mask.provenance.get("method"))})
        for path in copied:
            _copy(path, made / path.name)
        parent.check_unchanged()
        _put_in_place(made, out, working)
    return HfPruned(out, plan.n_bytes, plan.checked, left_out)


def plan_checkpoint(parent: HfCheckpoint, mask: ExpertMask, gguf: str | Path | None = None) -> HfPlan:
    """Return what a pruned checkpoint consists of.

    Args:
        parent: The parent.
        mask: The mask.
        gguf: The model that the mask was made with, from whose routers the parent's may differ by rounding.

    Raises:
        InputError: The mask is of another model, or a tensor may or may not have a dimension of experts.
    """
    if mask.n_experts != parent.n_experts:
        raise InputError(
            f"{mask.place}: for {parent.path}: the number of experts differs ({mask.n_experts}, "
            f"not {parent.n_experts})"
        )
    layers = find_moe_layers(parent)
    checked = check_match(parent, layers, mask, None if gguf is None else ModelHeader(gguf))
    _check_names_no_expert(parent)
    return HfPlan(_pieces(parent, _cuts(parent, layers, mask)), checked)


def record_of(mask: ExpertMask) -> dict[str, Any]:
    """Return what a pruned checkpoint's record says about its mask."""
    return {
        "mode": "prune",
        "keep": mask.keep,
        "parent_expert_count": mask.n_experts,
        "parent_fingerprint": mask.fingerprint,
        "mask_digest": mask.digest,
    }


def _check_output(out: Path, parent: HfCheckpoint, force: bool, inputs: tuple[Path, ...]) -> None:
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out}: holds {path}, an input of this command; choose another directory")
    if out.resolve() == parent.path.resolve() or out.resolve().is_relative_to(parent.path.resolve()):
        raise InputError(f"{out}: is the parent or in it; choose another directory")
    if parent.path.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out}: holds the parent; choose another directory")
    if not out.parent.is_dir():
        raise InputError(f"{out}: its directory does not exist; create it first")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is not a directory; choose another name")
    if not out.exists():
        return
    if not force:
        raise InputError(f"{out}: exists; choose another name or pass --force")
    if not (out / RECORD).is_file():
        raise InputError(
            f"{out}: was not written by coe-native, so --force does not replace it; choose another name"
        )


def _check_names_no_expert(parent: HfCheckpoint) -> None:
    """Check that the config names no single expert, as lists of modules that are not quantised can."""
    places = [(parent.path / CONFIG, text) for text in _texts(parent.config)]
    places += [(file.path, text) for file in parent.files for text in _texts(dict(file.metadata))]
    for path in _other_files(parent)[0]:
        is_list = path.suffix in _MAY_LIST_MODULES and not path.name.startswith(("tokenizer", "vocab"))
        if is_list and path.is_file() and path.stat().st_size <= _MOST_LISTED:
            places.append((path, path.read_text(encoding="utf-8", errors="replace")))
    for path, text in places:
        if match := _SINGLE_EXPERT.search(_ANY_NUMBER.sub("", text)):
            raise InputError(
                f"{path}: names a single expert ({printable(match[0], 100)}), whose number would change"
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.items() for inner in item for text in _texts(inner))
    elif isinstance(value, list):
        yield from (text for inner in value for text in _texts(inner))


def _cuts(parent: HfCheckpoint, layers: Sequence[HfMoeLayer], mask: ExpertMask) -> dict[str, _Cut]:
    """Return how tensors are cut, by name.

    Layers that predict further tokens are not in the mask; they keep the experts whose router rows have the
    largest norms, as in a pruned GGUF.
    """
    cuts: dict[str, _Cut] = {}
    for layer in layers:
        kept = mask.kept.get(layer.index)
        if kept is None:
            kept = _best_by_router_norm(parent, layer, mask.keep)
        cuts |= {name: _Cut(tuple(kept)) for name in layer.stacked}
        cuts |= {name: _Cut(tuple(kept), expert) for name, expert in layer.numbered.items()}
    return cuts


def _best_by_router_norm(parent: HfCheckpoint, layer: HfMoeLayer, keep: int) -> tuple[int, ...]:
    if parent.tensors[layer.router].stored.dtype not in FLOATS:
        raise InputError(
            f"{parent.path}: layer {layer.index} predicts further tokens and is not in the mask, and its router "
            f"({layer.router}) is quantised, so that it is not known which of its experts to keep"
        )
    norms = np.linalg.norm(router_values(parent, layer).astype(np.float64), axis=1)
    return tuple(router_shape(parent).best(norms, keep))


@dataclass(frozen=True)
class _Cut:
    """The experts that stay, and, of a tensor of one expert, that expert."""

    kept: tuple[int, ...]
    expert: int | None = None


def _pieces(
    parent: HfCheckpoint, cuts: Mapping[str, _Cut]
) -> tuple[tuple[SafetensorsFile, tuple[HfPiece, ...]], ...]:
    """Return the tensors of each file, in the order of the parent's."""

    def pieces(file: SafetensorsFile) -> Iterator[HfPiece]:
        for stored in file.tensors.values():
            cut = cuts.get(stored.name)
            if cut is not None and cut.expert is None:
                yield _sliced(stored, cut.kept)
            elif cut is None or cut.expert in cut.kept:
                name = stored.name if cut is None else renumbered(stored.name, cut.kept.index(cut.expert or 0))
                yield HfPiece(name, stored.shape, stored, ((stored.begin, stored.n_bytes),))

    return tuple((file, tuple(pieces(file))) for file in parent.files)


def _sliced(stored: StoredTensor, kept: Sequence[int]) -> HfPiece:
    n_experts, *others = without_ones(stored.shape)
    size = stored.n_bytes // n_experts
    if size * n_experts != stored.n_bytes:
        raise InputError(f"{stored.name} has experts that do not begin at a byte, so it cannot be cut")
    ranges = tuple((stored.begin + run.start * size, len(run) * size) for run in kept_ranges(kept))
    ones = (1,) * (len(stored.shape) - len(others) - 1)
    return HfPiece(stored.name, (*ones, len(kept), *others), stored, ranges)


def _write_weights(plan: HfPlan, made: Path, progress: Report) -> None:
    done = 0
    for file, pieces in plan.files:
        with open_regular(file.path) as source, _new_file(made / file.path.name) as target:
            target.write(header_of(file, pieces))
            for piece in pieces:
                for offset, n_bytes in piece.ranges:
                    copy_range(source, offset, n_bytes, target)
                done += piece.n_bytes
                progress(done, plan.n_bytes)


def header_of(file: SafetensorsFile, pieces: Sequence[HfPiece]) -> bytes:
    """Return the header of a pruned file, with its length."""
    entries: dict[str, Any] = {"__metadata__": dict(file.metadata)} if file.metadata else {}
    at = 0
    for piece in pieces:
        entries[piece.name] = {
            "dtype": piece.source.dtype,
            "shape": piece.shape,
            "data_offsets": (at, at + piece.n_bytes),
        }
        at += piece.n_bytes
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def _index_metadata(parent: HfCheckpoint, plan: HfPlan) -> dict[str, Any]:
    """Return what the index says besides where tensors are: their bytes, and values if it had counted them."""
    metadata = {**(parent.index or {}), "total_size": plan.n_bytes}
    n_values = metadata.pop("total_parameters", None)
    if n_values == sum(math.prod(tensor.shape) for tensor in parent.tensors.values()):  # not of packed values
        metadata["total_parameters"] = sum(math.prod(piece.shape) for _, pieces in plan.files for piece in pieces)
    return metadata


def _write_json(path: Path, value: Any) -> None:
    try:
        data = json.dumps(value, indent=2, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a character, which only an escape can hold
        data = json.dumps(value, indent=2).encode()
    with _new_file(path) as file:
        file.write(data + b"\n")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, whose bytes are on the disk when the block ends.

    Raises:
        CoeError: The system cannot write it.
    """
    try:
        with path.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CoeError(f"{path.name}: cannot be written: {error.strerror or error}") from error


def _other_files(parent: HfCheckpoint) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files to copy, and the names of those that are left out."""
    known = {CONFIG, INDEX, RECORD, "params.json", *(file.path.name for file in parent.files)}
    copied, left_out = [], []
    for path in sorted(parent.path.iterdir()):
        if path.name in known or path.name.startswith("."):
            continue
        if path.is_dir() or path.name.endswith(_OTHER_WEIGHTS) or path.name.endswith(".index.json"):
            left_out.append(path.name)
        else:
            copied.append(path)
    return copied, tuple(left_out)


def _copy(path: Path, target: Path) -> None:
    try:
        source = open_regular(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    with source, _new_file(target) as file:
        copy_range(source, 0, os.fstat(source.fileno()).st_size, file)


def _put_in_place(made: Path, out: Path, working: Path) -> None:
    """Give a finished directory its name. One that it replaces is renamed first, and removed with `working`."""
    replaced = working / "replaced"
    try:
        if out.exists():
            out.rename(replaced)
        made.rename(out)
    except OSError as error:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise CoeError(f"{out}: cannot be written: {error.strerror or error}") from error
    if os.name == "posix":
        descriptor = os.open(out.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems refuse it
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
