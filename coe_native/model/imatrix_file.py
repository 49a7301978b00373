"""Importance matrices in llama.cpp's GGUF format: the squared inputs of each matrix, by column.

The quantiser weighs the error of each column by its mean square (Kawrakow's importance matrix, llama.cpp's pull
request 4861).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.atomic import check_target, replacing
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import GgufFile, Tensor, encode_entry, encode_header

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_DATASETS = 1 << 12
_MASK = "coe.mask.digest"
_VERSION, _ALIGNMENT, _F32 = 3, 32, 0  # of GGUF; the number of ggml's type


@dataclass(frozen=True)
class ImatrixEntry:
    """What was summed for one matrix, or for the stacked matrices of experts.

    Attributes:
        sums: Sums of squared inputs, float32 [n_counts, n_columns]. Experts have a count each. Other stacked
            matrices have one for all, with the columns of one matrix after those of another.
        counts: Tokens that were summed, float32 [n_counts].
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    @property
    def of_experts(self) -> bool:
        """Return whether it is of the stacked matrices of experts."""
        return len(self.counts) > 1

    @property
    def weights(self) -> NDArray[np.float32]:
        """Return the mean squares, float32 of the same shape; 1 for a matrix without tokens, as llama-quantize."""
        counts = self.counts[:, np.newaxis]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = self.sums / counts
        return np.where(counts > 0, means, np.float32(1)).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: By the name of the tensor.
        datasets: Names of the text.
        n_chunks: Chunks of the text.
        chunk_size: Tokens of a chunk.
        mask: The digest of the mask under which it was taken; empty without one.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int
    mask: str = ""

    @classmethod
    def load(cls, path: str | Path) -> Imatrix:
        """Read a file of llama-imatrix.

        Raises:
            InputError: It is something else, or is damaged.
        """
        file = GgufFile(Path(path))
        if file.get("general.type") != "imatrix":
            raise InputError(f"{path}: is not an importance matrix; make one with `coe-native imatrix`")
        tensors = {tensor.name: tensor for tensor in file.tensors}
        entries = {}
        for name, tensor in tensors.items():
            if not name.endswith(_SUMS):
                continue
            counts = tensors.get(name.removesuffix(_SUMS) + _COUNTS)
            if counts is None:
                raise InputError(f"{path}: has no counts for {name}; it is damaged")
            of_matrices = _values(file, counts).reshape(-1)
            sums = _values(file, tensor).reshape(len(of_matrices), -1)
            entries[name.removesuffix(_SUMS)] = ImatrixEntry(sums, of_matrices)
        if not entries:
            raise InputError(f"{path}: is an importance matrix without entries")
        for name, entry in entries.items():
            if not np.isfinite(entry.weights).all() or (entry.counts.any() and not entry.sums.any()):
                raise InputError(f"{path}: has no usable values for {name}; it is damaged")
        datasets = file.get("imatrix.datasets", [], most=_MOST_DATASETS)
        n_chunks, size = (file.get(f"imatrix.chunk_{what}", 0) for what in ("count", "size"))
        if not isinstance(datasets, list) or not isinstance(n_chunks, int) or not isinstance(size, int):
            raise InputError(f"{path}: has metadata of another kind than llama-imatrix writes; it is damaged")
        return cls(entries, tuple(map(str, datasets)), n_chunks, size, str(file.get(_MASK, "")))

    def save(self, path: str | Path, *, force: bool = True) -> None:
        """Write the file, whole or not at all, as llama-imatrix does.

        Args:
            path: The file.
            force: Replace an existing file.

        Raises:
            InputError: The file exists (without `force`), or the path cannot be used.
            CoeError: It cannot be written.
        """
        path = Path(path)
        check_target(path, force=force)
        arrays = {}
        for name, entry in sorted(self.entries.items()):
            arrays[name + _SUMS] = entry.sums
            arrays[name + _COUNTS] = entry.counts[:, np.newaxis]
        metadata = [
            encode_entry("general.type", "imatrix"),
            encode_entry("imatrix.datasets", self.datasets),
            encode_entry("imatrix.chunk_count", self.n_chunks),
            encode_entry("imatrix.chunk_size", self.chunk_size),
            *([encode_entry(_MASK, self.mask)] if self.mask else []),
        ]
        infos = [(name, array.shape[::-1], _F32, array.nbytes) for name, array in arrays.items()]
        with replacing(path) as file:
            file.write(encode_header(_VERSION, metadata, infos, _ALIGNMENT))
            for array in arrays.values():
                data = array.astype("<f4").tobytes()
                file.write(data + bytes(-len(data) % _ALIGNMENT))

    def of_kept(self, kept: Mapping[str, Sequence[int]], mask: str) -> Imatrix:
        """Return the part for the kept experts, in their order in a specialist.

        Args:
            kept: The kept experts of each tensor with experts, by its name.
            mask: The mask's digest.
        """
        entries = {
            name: ImatrixEntry(entry.sums[list(kept[name])], entry.counts[list(kept[name])])
            if name in kept and entry.of_experts
            else entry
            for name, entry in self.entries.items()
        }
        return replace(self, entries=entries, mask=mask)

    def with_means(self, min_tokens: int) -> tuple[Imatrix, dict[str, tuple[int, ...]]]:
        """Return it with the mean of a layer's experts for those that have seen few tokens.

        Args:
            min_tokens: Fewer are few.

        Returns:
            The importance matrix, and the experts that got the mean, by the tensor's name.
        """
        entries, few = dict(self.entries), {}
        for name, entry in self.entries.items():
            lacking = entry.counts < min_tokens
            if not entry.of_experts or not lacking.any() or not entry.counts.any():
                continue
            mean = entry.sums.sum(axis=0, dtype=np.float64) / entry.counts.sum(dtype=np.float64)
            counts = np.where(lacking, np.maximum(entry.counts, 1), entry.counts).astype(np.float32)
            sums = np.where(lacking[:, np.newaxis], mean * counts[:, np.newaxis], entry.sums)
            entries[name] = ImatrixEntry(sums.astype(np.float32), counts)
            few[name] = tuple(map(int, np.flatnonzero(lacking)))
        return replace(self, entries=entries), few


def _values(file: GgufFile, tensor: Tensor) -> NDArray[np.float32]:
    if tensor.type_name != "F32":
        raise InputError(f"{file.path}: {tensor.name} is not of 32-bit floats; it is damaged")
    with file.open() as opened:
        values = np.frombuffer(read_exactly(opened, tensor.offset, tensor.n_bytes), "<f4")
    with np.errstate(invalid="ignore"):
        if len(values) == 0 or not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"{file.path}: {tensor.name} has numbers that are no sums of squares; it is damaged")
    return values
