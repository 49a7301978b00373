"""Files of other tools: PyTorch's counts and masks, and llama-imatrix's matrices."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

STORAGES = {
    "f8": "Double",
    "i8": "Long",
    "i4": "Int",
    "i2": "Short",
    "i1": "Char",
    "u1": "Byte",
    "b1": "Bool",
    "f4": "Float",
}


class TorchPickler(pickle._Pickler):  # the one in Python, whose instructions can be added to
    """Writes a pickle as torch.save does, for NumPy arrays in place of tensors. By PyTorch's own format: a call of
    _rebuild_tensor_v2 with a persistent id for the storage."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: list[bytes] = []

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(value, np.ndarray):
            super().save(value, save_persistent_id)
            return
        stored = np.array(value, order="C")
        strides = [step // stored.itemsize for step in stored.strides]
        self._name("torch._utils", "_rebuild_tensor_v2")
        self.write(pickle.MARK)
        self.write(pickle.MARK)
        super().save("storage")
        self._name("torch", STORAGES[stored.dtype.str[1:]] + "Storage")
        super().save(str(len(self.storages)))
        super().save("cpu")
        super().save(stored.size)
        self.write(pickle.TUPLE + pickle.BINPERSID)
        for part in (0, stored.shape, tuple(strides), False):
            super().save(part)
        self._name("collections", "OrderedDict")
        self.write(pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE)
        self.storages.append(stored.tobytes())

    def _name(self, module: str, name: str) -> None:
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())


def torch_save(path: Path, value: Any, protocol: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            pickler = TorchPickler(file, protocol)
            pickler.dump(value)
        archive.writestr("archive/byteorder", "little")
        for number, data in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{number}", data)
        archive.writestr("archive/version", "3\n")
    return path


def histograms(n_layers: int = 3, n_experts: int = 16, top_k: int = 4, n_tokens: int = 50) -> NDArray[np.int64]:
    counts = np.zeros((n_layers, n_experts, top_k), np.int64)
    generator = np.random.default_rng(1)
    for layer in range(n_layers):
        for _ in range(n_tokens):
            for rank, expert in enumerate(generator.permutation(n_experts)[:top_k]):
                counts[layer, expert, rank] += 1
    return counts


def imatrix(
    path: Path,
    counts: dict[int, NDArray[np.float32]],
    n_tokens: int,
    kind: str = "imatrix",
    *,
    n_chunks: int | None = None,
    down: float = 0,
) -> Path:
    """As llama-imatrix writes it: two tensors a matrix, the experts' matrices with a count for each expert.

    The number of chunks and the counts of ``ffn_down_exps`` may be wrong, the latter by `down`.
    """
    writer = GGUFWriter(path, "none")
    writer.add_type(kind)
    writer.add_uint32("imatrix.chunk_count", n_tokens // 10 if n_chunks is None else n_chunks)
    writer.add_uint32("imatrix.chunk_size", 10)
    for block, of_layer in counts.items():
        for matrix in ("ffn_gate_up_exps", "ffn_down_exps"):
            writer.add_tensor(f"blk.{block}.{matrix}.weight.in_sum2", np.ones((len(of_layer), 8), np.float32))
            off = np.float32(down if matrix == "ffn_down_exps" else 0)
            writer.add_tensor(f"blk.{block}.{matrix}.weight.counts", (of_layer + off).reshape(-1, 1))
        writer.add_tensor(f"blk.{block}.ffn_gate_inp.weight.counts", np.full((1, 1), n_tokens, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
