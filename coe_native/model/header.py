"""What the header of a mixture-of-experts model says about its experts."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coe_native._native import core
from coe_native.errors import InputError
from coe_native.model.gguf_file import GgufFile, Tensor
from coe_native.model.names import model_path
from coe_native.model.other_parts import in_other_part
from coe_native.model.router_shape import RouterShape
from coe_native.model.surgery_record import SurgeryRecord, read_record

_GATING = {1: "softmax", 2: "sigmoid", 3: "softmax after top-k", 4: "square-root softplus"}


@dataclass(frozen=True)
class MoeLayer:
    """One layer with experts.

    Attributes:
        block: Its block index.
        router: The router's matrix.
        tensors: All tensors with one slice for each expert, the router's included.
        weights: Those of them that are the experts' own weights and biases. Where they are zero, so is the output.
        top_k: Experts that the router chooses for a token.
        by_table: Whether a table gives the experts of each token (the hash layers of DeepSeek 4), and the router
            only weighs them.
    """

    block: int
    router: Tensor
    tensors: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    top_k: int
    by_table: bool


class ModelHeader:
    """The header of a mixture-of-experts model in GGUF, of all shards if it is split. Reads no weights.

    Attributes:
        path: The file that was given, or that of the model that was named (`model_path`); of a split model, the
            first.
        files: The files of all shards.
        tensors: All tensors, by name.
        layers: The layers with experts, in the order of their blocks.
        routed_layers: Those that run for every token.
        mtp_layers: Those that predict further tokens (MTP). No forward pass runs them, and no profile counts them.
        blocks: Block index of each routed layer, ascending.
        mtp_blocks: The blocks that predict further tokens, with or without experts.
        router_shape: How the routers choose.

    Raises:
        InputError: The file is not GGUF, has no experts, is not the first shard, or is being zeroed in place
            (unless `surgery_goes_on`, for the one who finishes that).
    """

    def __init__(self, path: str | Path, *, surgery_goes_on: bool = False) -> None:
        self.path = model_path(path)
        try:
            self.files = _open_shards(self.path, surgery_goes_on)
            self.native = core.find_router_layout([file.native for file in self.files])
        except InputError:
            raise
        except ValueError as error:
            raise InputError(str(error)) from error
        tensors = [file.tensors for file in self.files]

        def find(positions: list[tuple[int, int]]) -> tuple[Tensor, ...]:
            return tuple(tensors[file][index] for file, index in positions)

        self.tensors = {tensor.name: tensor for of_file in tensors for tensor in of_file}
        layers = [
            MoeLayer(
                block=layer.block,
                router=find([layer.router])[0],
                tensors=find(layer.tensors),
                weights=find(layer.weights),
                top_k=layer.top_k,
                by_table=layer.by_table,
            )
            for layer in self.native.layers
        ]
        self.mtp_blocks = range(self.native.first_mtp_block, self.native.n_blocks)
        self.layers = tuple(layers)
        is_mtp = {layer.block: layer.is_mtp for layer in self.native.layers}
        self.routed_layers = tuple(layer for layer in layers if not is_mtp[layer.block])
        self.mtp_layers = tuple(layer for layer in layers if is_mtp[layer.block])
        self.blocks = [layer.block for layer in self.routed_layers]
        shape = self.native.shape
        self.router_shape = RouterShape(shape.n_experts, shape.top_k, shape.n_groups, shape.n_groups_used)

    def metadata(self, key: str, default: Any = None) -> Any:
        """Return a metadata value of the first file."""
        return self.files[0].get(key, default)

    def arch(self, key: str, default: Any = None) -> Any:
        """Return a metadata value whose key begins with the architecture's name."""
        return self.metadata(f"{self.architecture}.{key}", default)

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture."""
        return self.native.architecture

    @property
    def name(self) -> str:
        """Return the model's name, at most 200 characters of it; without one, the file's."""
        return self.native.model_name

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks, with or without experts."""
        return self.native.n_blocks

    @property
    def n_experts(self) -> int:
        """Return the number of routed experts of a layer."""
        return self.router_shape.n_experts

    @cached_property
    def top_k(self) -> int:
        """Return the number of experts chosen for a token, the largest where layers differ."""
        return max(layer.top_k for layer in self.routed_layers)

    @property
    def is_causal(self) -> bool:
        """Return whether a token sees only those before it, so that a window can be computed in parts."""
        return bool(self.arch("attention.causal", True))

    @property
    def gating(self) -> str:
        """Return what turns router logits into weights, where the metadata says so."""
        value = self.arch("expert_gating_func", 0)
        if not isinstance(value, int):
            raise InputError(f"{self.path}: {self.architecture}.expert_gating_func is not a number; it is damaged")
        return _GATING.get(value, "set by the architecture")

    @property
    def obstacle(self) -> str | None:
        """Return why the model cannot be cut to fewer experts, or None if it can."""
        return self.native.obstacle or None

    @property
    def cannot_count(self) -> str | None:
        """Return why the routers' choices cannot be counted, or None if they can."""
        return self.native.cannot_count or None

    def check_countable(self) -> None:
        """Check that the routers' choices can be counted.

        Raises:
            InputError: They cannot; gives the reason.
        """
        try:
            self.native.check_countable()
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from error

    def check_cut(self, keep: int) -> None:
        """Check that the model can be cut to `keep` experts a layer.

        Raises:
            InputError: llama.cpp could not run it, or would compute something else than the kept experts' share.
        """
        try:
            self.router_shape.check_keep(keep)
            self.native.check_keep(keep)
        except ValueError as error:
            raise InputError(f"{self.path}: {error}") from error

    @property
    def possible_keeps(self) -> list[int]:
        """Return all numbers of experts that the model can be cut to, ascending. Its own is the last."""
        possible = []
        for keep in range(1, self.n_experts + 1):
            with contextlib.suppress(InputError):
                self.check_cut(keep)
                possible.append(keep)
        return possible

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 digest (hex) that tells this model from others: see docs/formats.md.

        It covers the architecture, the numbers of experts and the values of all routers, so it is the same for
        every quantisation of a model. Reads the routers.
        """
        try:
            core.find_fingerprints([file.native for file in self.files], self.native, hashlib.sha256)
        except ValueError as error:
            raise InputError(str(error)) from error
        self.check_unchanged()
        return self.native.fingerprint

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Return whether a fingerprint is the model's own, also one that version 0.1.0 computed."""
        return fingerprint == self.fingerprint or self.native.has_fingerprint(fingerprint)

    @cached_property
    def header_digest(self) -> str:
        """Return the SHA-256 digest (hex) of all headers, which differs between quantisations of a model.

        For a model that was zeroed in place, it covers the mask's digest too.
        """
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.header_bytes)
        if self.surgery is not None and self.surgery.in_place:
            digest.update(self.surgery.digest.encode())
        return digest.hexdigest()

    @cached_property
    def other_parts(self) -> tuple[Tensor, ...]:
        """Return the tensors of vision and audio parts in the same file, which llama.cpp does not load."""
        return tuple(tensor for tensor in self.tensors.values() if in_other_part(tensor.name))

    @property
    def vocabulary_bytes(self) -> bytes:
        """Return the metadata entry with the tokens' texts, as bytes; empty without one."""
        key = "tokenizer.ggml.tokens"
        return self.files[0].raw_entry(key) if key in self.files[0].keys else b""

    @cached_property
    def surgery(self) -> SurgeryRecord | None:
        """Return what was done to the model, as its files record it."""
        return read_record(self.files[0])

    def check_unchanged(self) -> None:
        """Check that the files are still those whose headers were read.

        Raises:
            CoeError: One was written to or replaced.
        """
        for file in self.files:
            file.check_unchanged()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Return the paths of all files."""
        return tuple(file.path for file in self.files)

    @property
    def n_bytes(self) -> int:
        """Return the size of all files in bytes."""
        return sum(file.size for file in self.files)

    @property
    def expert_bytes(self) -> int:
        """Return the size of all tensors with an expert dimension, routers included."""
        return sum(tensor.n_bytes for layer in self.layers for tensor in layer.tensors)

    def specialist_bytes(self, keep: int) -> int:
        """Return the approximate size of a file with `keep` experts in each layer, without vision and audio."""
        others = sum(tensor.n_bytes for tensor in self.other_parts)
        return self.n_bytes - others - self.expert_bytes // self.n_experts * (self.n_experts - keep)


MoeModel = ModelHeader
"""The public name of ModelHeader."""


def _open_shards(path: Path, surgery_goes_on: bool) -> tuple[GgufFile, ...]:
    first = GgufFile(path, surgery_goes_on=surgery_goes_on)
    if first.holds_another:
        raise InputError(
            f"{path}: holds several shards one after another; join the original shards with "
            "`llama-gguf-split --merge`, or give the first of them"
        )
    others = [GgufFile(Path(os.fsdecode(shard))) for shard in core.shard_paths(first.native)[1:]]
    files = (first, *others)
    core.check_shards([file.native for file in files])
    return files
