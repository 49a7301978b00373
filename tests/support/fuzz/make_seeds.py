"""Write the seeds again: ``cd tests && python -m support.fuzz.make_seeds``.

They are small, and have everything that a reader knows.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from support.fuzz.targets import SEEDS
from support.imported_files import imatrix, torch_save
from support.problems import ADD, as_lines
from support.random_models import write_random_model
from support.sweeps import make_sweep

import coe_native as coe
from coe_native.corpus.bundles import Shard
from coe_native.corpus.in_memory import corpus_of
from coe_native.profiling.checkpoint import Checkpoint, Position

# F32, F16, Q4_0, Q5_1, Q8_0, Q2_K, Q4_K, Q6_K, IQ2_XXS, IQ4_NL, IQ4_XS, BF16, TQ1_0, MXFP4
_TYPES = (0, 1, 2, 7, 8, 10, 12, 14, 16, 20, 23, 30, 34, 39)


def _save(kind: str, name: str, data: bytes) -> None:
    (SEEDS / kind).mkdir(parents=True, exist_ok=True)
    (SEEDS / kind / name).write_bytes(data)


def _models(directory: Path) -> None:
    for family in ("qwen3moe", "gemma4", "deepseek2", "gpt-oss", "jamba"):
        path = directory / f"{family}.gguf"
        sizes = {"n_experts": 8, "top_k": 2, "n_embd": 64, "n_ff_expert": 32}
        write_random_model(path, family, quantization="Q8_0", **sizes)
        _save("gguf", f"{family}.gguf", coe.MoeModel(path).files[0].header_bytes)


def _smallest_model(directory: Path) -> None:
    """A header with all that a router's layout takes, and data of a few bytes."""
    writer = GGUFWriter(directory / "smallest.gguf", "olmoe")
    writer.add_block_count(3)
    writer.add_expert_count(4)
    writer.add_array("olmoe.expert_used_count", [2, 1, 2])
    writer.add_expert_group_count(2)
    writer.add_expert_group_used_count(1)
    writer.add_uint32("olmoe.nextn_predict_layers", 1)
    for block in (0, 1, 2):
        writer.add_tensor(f"blk.{block}.ffn_gate_inp.weight", np.ones((4, 2), np.float32))
        writer.add_tensor(f"blk.{block}.exp_probs_b.bias", np.ones(4, np.float32))
    writer.add_tensor("blk.2.nextn.eh_proj.weight", np.ones(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _save("gguf", "smallest.gguf", (directory / "smallest.gguf").read_bytes())


def _profiles_and_masks(directory: Path) -> None:
    path = directory / "qwen3moe.gguf"
    documents = [[1, 2, 3, 4, 5] * 4, [7, 8, 9]]
    options = {"n_ctx": 16, "n_batch": 16, "n_threads": 1}
    whole = coe.profile(path, documents, **options)  # type: ignore[arg-type]
    shard = coe.profile(path, documents, shard=Shard(1, 2), **options)  # type: ignore[arg-type]
    histograms, weight_sum = whole.histograms.copy(), whole.weight_sum.copy()
    histograms[-1] = weight_sum[-1] = 0
    histograms[-1, :2] = np.eye(2)
    seen = (*(whole.n_tokens for _ in whole.layers[1:]), 1)
    live = replace(
        whole, histograms=histograms, weight_sum=weight_sum, weight_sum_rest=np.zeros(()), layer_tokens=seen
    )
    outputs = coe.profile(path, documents, stats="contribution", **options)  # type: ignore[arg-type]
    profiles = {"whole": whole, "shard": shard, "live": live, "outputs": outputs}
    for name, profile in ((f"{name}.gguf", profile) for name, profile in profiles.items()):
        profile.save(directory / name)
        _save("profile", name, (directory / name).read_bytes())
    checkpoint = Checkpoint(directory / "p.gguf")
    checkpoint.begin({"ctx": 512, "model": "a", "corpus": corpus_of(["text"]).sha256}, old_run=dict)
    checkpoint.save(Position(0, 1), whole)
    _save("profile", "checkpoint.gguf", checkpoint.path.read_bytes())
    for name, mask in (
        ("plain.json", coe.build_mask(whole, 4)),
        ("swaps.json", coe.build_mask(whole, 3, structural_min=1, structural_rank=9.0, reasoning=shard)),
    ):
        mask.save(directory / name)
        _save("mask", name, (directory / name).read_bytes())


def _imported(directory: Path) -> None:
    counts = np.zeros((2, 8, 2), np.int64)
    counts[:, 3, 0] = counts[:, 5, 1] = 7
    flags = np.arange(16).reshape(2, 8) % 2 == 0
    for name, value in (
        ("counts", {"histograms": counts, "note": "text"}),
        ("mask", [np.array([0, 3, 5]), np.array([1, 2, 7], np.int32)]),
        ("flags", {"a": (None, True, 1.5, flags)}),
    ):
        path = torch_save(directory / f"{name}.pt", value)
        _save("imported", f"{name}.pt", b"\1" + path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            _save("imported", f"{name}.pkl", b"\0" + archive.read("archive/data.pkl"))
    matrix = {block: np.array([4, 0, 0, 6, 0, 5, 0, 5], np.float32) for block in (0, 2)}
    _save("imported", "imatrix.gguf", b"\2" + imatrix(directory / "imatrix.gguf", matrix, 10).read_bytes())


def _judged(directory: Path) -> None:
    make_sweep({4: 0.5, 8: 0.01}).save(directory / "sweep.json")
    _save("judged", "sweep.json", (directory / "sweep.json").read_bytes())
    _save("judged", "problems.jsonl", as_lines([ADD]).encode())


def _corpora() -> None:
    records = [
        {"text": "größer\n\ud83d\ude00"},
        {"tokens": [1, 2, 255]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"prompt": "one", "completion": " two"},
        {"question": "one", "answer": " two", "n": 1.5, "deep": [[{}], None, True]},
        {"question": "one", "options": ["a", 2], "answer_index": 1},
        {"system": "s", "conversations": [{"from": "human", "value": ["a", {"text": "b"}]}], "tools": "[{}]"},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]},
    ]
    lines = "\n".join(json.dumps(record) for record in records)
    _save("corpus", "records.jsonl", b"\0" + lines.encode())
    _save("corpus", "list.json", b"\3[" + ",".join(lines.splitlines()).encode() + b"]")
    _save("corpus", "table.csv", b'\4question,options,answer\nq,"[1, 2]",B\n')
    _save("corpus", "lines.gz", b"\5" + gzip.compress(lines.encode(), mtime=0))
    _save("corpus", "text.txt", b"\2" + "\ufeffText with ümläuts.\r\n".encode())
    for name, array in {
        "one.npy": np.arange(9, dtype=np.int32),
        "two.npy": np.arange(6, dtype=np.uint16).reshape(2, 3),
        "objects.npy": np.array([{}], dtype=object),
    }.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        _save("corpus", name, b"\1" + buffer.getvalue())


def _for_the_core() -> None:
    noise = random.Random(0)
    for ggml_type in _TYPES:
        _save("tensor_blocks", f"{ggml_type}", bytes([ggml_type, 2, 0]) + noise.randbytes(2 * 256 * 4))
    for number, length in enumerate((20, 200, 1000, 4000)):
        _save("c_api", f"{number}", bytes([8, 2, 2, 1, 0, 1, 1]) + noise.randbytes(length))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        _models(Path(directory))
        _smallest_model(Path(directory))
        _profiles_and_masks(Path(directory))
        _imported(Path(directory))
        _judged(Path(directory))
    _corpora()
    _for_the_core()
