"""Importance matrices in llama.cpp's GGUF format: the squared inputs of each matrix, by column.

The quantiser weighs the error of each column by its mean square (Kawrakow's importance matrix, llama.cpp's pull
request 4861).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe_native.errors import InputError
from coe_native.files.reading import read_exactly
from coe_native.model.gguf_file import GgufFile, Tensor

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_DATASETS = 1 << 12


@dataclass(frozen=True)
class ImatrixEntry:
    """What was summed for one matrix, or for the stacked matrices of experts.

    Attributes:
        sums: Sums of squared inputs, float32 [n_matrices, n_columns].
        counts: Tokens that each matrix has seen, float32 [n_matrices].
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

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
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int

    @classmethod
    def load(cls, path: str | Path) -> Imatrix:
        """Read a file of llama-imatrix.

        Raises:
            InputError: It is something else, or is damaged.
        """
        file = GgufFile(Path(path))
        if file.get("general.type") != "imatrix":
            raise InputError(f"{path}: is not an importance matrix; make one with llama-imatrix")
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
        datasets = file.get("imatrix.datasets", [], most=_MOST_DATASETS)
        n_chunks, size = (file.get(f"imatrix.chunk_{what}", 0) for what in ("count", "size"))
        if not isinstance(datasets, list) or not isinstance(n_chunks, int) or not isinstance(size, int):
            raise InputError(f"{path}: has metadata of another kind than llama-imatrix writes; it is damaged")
        return cls(entries, tuple(map(str, datasets)), n_chunks, size)


def _values(file: GgufFile, tensor: Tensor) -> NDArray[np.float32]:
    if tensor.type_name != "F32":
        raise InputError(f"{file.path}: {tensor.name} is not of 32-bit floats; it is damaged")
    with file.open() as opened:
        values = np.frombuffer(read_exactly(opened, tensor.offset, tensor.n_bytes), "<f4")
    with np.errstate(invalid="ignore"):
        if len(values) == 0 or not np.isfinite(values).all() or values.min() < 0:
            raise InputError(f"{file.path}: {tensor.name} has numbers that are no sums of squares; it is damaged")
    return values
