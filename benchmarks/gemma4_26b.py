"""A file of Gemma 4 26B-A4B's exact shape, made on the spot, through inspect, profile, mask, prune and verify.

    python -m benchmarks.gemma4_26b VOCABULARY.gguf DIRECTORY

VOCABULARY.gguf is llama.cpp's `models/ggml-vocab-gemma-4.gguf`: the real model's metadata and tokenizer, without
a tensor. The tensors are random blocks, in the types that llama.cpp's own quantiser gives a small twin with as
many layers. DIRECTORY needs 27 GB. Prints sizes, and each command's time and peak memory: of its own, and with
the pages of the file that it has mapped. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

POOL_ROWS = 64
"""Different rows of each type and length; more would only take longer to make."""

KEEP = 64
PROFILE_WORDS = 300


@dataclass(frozen=True)
class Shape:
    """Gemma 4's widths. Every sixth layer has full attention: wider heads, fewer for keys, keys used as values."""

    n_vocab: int
    n_embd: int
    n_experts: int
    n_ff: int
    n_ff_expert: int
    n_layers: int = 30
    n_head: int = 16
    head_size: int = 256

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape in NumPy's order of each tensor."""
        embd = self.n_embd
        yield "token_embd.weight", (self.n_vocab, embd)
        yield "output_norm.weight", (embd,)
        yield "rope_freqs.weight", (self.head_size,)
        for layer in range(self.n_layers):
            full = layer % 6 == 5
            head = self.head_size * (2 if full else 1)
            n_head_kv = 2 if full else 8
            shapes: dict[str, tuple[int, ...]] = {
                "attn_q.weight": (self.n_head * head, embd),
                "attn_k.weight": (n_head_kv * head, embd),
                **({} if full else {"attn_v.weight": (n_head_kv * head, embd)}),
                "attn_output.weight": (embd, self.n_head * head),
                "attn_q_norm.weight": (head,),
                "attn_k_norm.weight": (head,),
                "ffn_gate.weight": (self.n_ff, embd),
                "ffn_up.weight": (self.n_ff, embd),
                "ffn_down.weight": (embd, self.n_ff),
                "ffn_gate_inp.weight": (self.n_experts, embd),
                "ffn_gate_inp.scale": (embd,),
                "ffn_gate_up_exps.weight": (self.n_experts, 2 * self.n_ff_expert, embd),
                "ffn_down_exps.weight": (self.n_experts, embd, self.n_ff_expert),
                "ffn_down_exps.scale": (self.n_experts,),
                "layer_output_scale.weight": (1,),
            }
            for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm_1", "pre_ffw_norm_2"):
                shapes[f"{norm}.weight"] = (embd,)
            for norm in ("post_ffw_norm_2", "post_ffw_norm"):
                shapes[f"{norm}.weight"] = (embd,)
            for name, shape in shapes.items():
                yield f"blk.{layer}.{name}", shape


def copy_metadata(source: Path, writer: GGUFWriter, changes: dict[str, int]) -> None:
    for key, field in GGUFReader(source).fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, changes.get(key, field.contents()), field.types[0], element)


def quantised_types(vocabulary: Path, directory: Path) -> dict[str, GGMLQuantizationType]:
    """The type of each tensor in llama.cpp's Q4_K_M, from a twin whose rows divide into blocks as the model's do:
    by 256, but for the rows of both kinds of FFN's second matrix, which divide by 32 only."""
    twin = Shape(n_vocab=262144, n_embd=256, n_experts=16, n_ff=96, n_ff_expert=64, n_head=8, head_size=32)
    changes = {"embedding_length": 256, "expert_count": 16, "feed_forward_length": 96}
    changes |= {"expert_feed_forward_length": 64, "attention.head_count": 8}
    changes |= {f"attention.{part}_length": 64 for part in ("key", "value")}
    changes |= {f"attention.{part}_length_swa": 32 for part in ("key", "value")}
    changes |= {"rope.dimension_count": 64, "rope.dimension_count_swa": 32}
    plain, quantised = directory / "twin.gguf", directory / "twin-Q4_K_M.gguf"
    writer = GGUFWriter(plain, "gemma4")
    copy_metadata(vocabulary, writer, {f"gemma4.{key}": value for key, value in changes.items()})
    for name, shape in twin.tensors():
        writer.add_tensor(name, np.ones(shape, np.float32))
    finish(writer)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if llama_cpp.llama_model_quantize(os.fsencode(plain), os.fsencode(quantised), ctypes.byref(params)):
        raise SystemExit("llama.cpp cannot quantise the twin")
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(quantised).tensors}
    plain.unlink()
    quantised.unlink()
    return types


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Noise:
    """Rows of random numbers, quantised by ggml, drawn from a pool."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._pools: dict[tuple[int, GGMLQuantizationType], NDArray[np.uint8]] = {}
        self._ggml = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
        self._ggml.ggml_row_size.restype = ctypes.c_size_t
        self._ggml.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._ggml.ggml_quantize_chunk.argtypes = (ctypes.c_int, pointer, pointer, count, count, count, pointer)

    def row_bytes(self, n_columns: int, kind: GGMLQuantizationType) -> int:
        return int(self._ggml.ggml_row_size(kind, n_columns))

    def rows(self, n_rows: int, n_columns: int, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
        """[n_rows, bytes of a row], of unit outputs for unit inputs."""
        if (n_columns, kind) not in self._pools:
            values = self._random.standard_normal((POOL_ROWS, n_columns), dtype=np.float32) * n_columns**-0.5
            pool = np.empty((POOL_ROWS, self.row_bytes(n_columns, kind)), np.uint8)
            self._ggml.ggml_quantize_chunk(
                kind, values.ctypes.data, pool.ctypes.data, 0, POOL_ROWS, n_columns, None
            )
            self._pools[n_columns, kind] = pool
        return self._pools[n_columns, kind][self._random.integers(0, POOL_ROWS, n_rows)]

    def vector(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Norms and scales around 1; routers with clear preferences; a quarter of each head feels the position."""
        if name == "rope_freqs.weight":
            return np.where(np.arange(shape[0]) < shape[0] // 4, 1.0, 1e30).astype(np.float32)
        if name.endswith("ffn_gate_inp.weight"):
            return 2 * self._random.standard_normal(shape, dtype=np.float32)
        return self._random.uniform(0.8, 1.2, shape).astype(np.float32)


def make(vocabulary: Path, path: Path) -> None:
    """Writes the model, a tensor at a time."""
    shape = Shape(n_vocab=262144, n_embd=2816, n_experts=128, n_ff=2112, n_ff_expert=704)
    types = quantised_types(vocabulary, path.parent)
    noise = Noise()
    writer = GGUFWriter(path, "gemma4")
    copy_metadata(vocabulary, writer, {"general.file_type": int(llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)})
    tensors = list(shape.tensors())
    for name, dimensions in tensors:
        kind = types[name]
        if kind == GGMLQuantizationType.F32:
            n_bytes = 4 * int(np.prod(dimensions))
            writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes)
        else:
            in_bytes = (*dimensions[:-1], noise.row_bytes(dimensions[-1], kind))
            writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), int(np.prod(in_bytes)), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dimensions in tensors:
        kind = types[name]
        if kind == GGMLQuantizationType.F32:
            writer.write_tensor_data(noise.vector(name, dimensions))
        else:
            writer.write_tensor_data(noise.rows(int(np.prod(dimensions[:-1])), dimensions[-1], kind))
    writer.close()


def run(*arguments: object) -> dict[str, Any]:
    """One command of coe-native: what it says, and what it took."""
    command = [str(Path(sys.executable).with_name("coe-native")), *map(str, arguments), "--json"]
    started = time.monotonic()
    own = resident = 0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        while process.poll() is None:
            now = _memory(process.pid)
            own, resident = max(own, now.get("RssAnon", 0)), max(resident, now.get("VmRSS", 0))
            time.sleep(0.02)
        out.seek(0)
        said = out.read()
    seconds = time.monotonic() - started
    print(
        f"{arguments[0]:<8} {seconds:7.1f} s   own memory {own / 1e9:5.2f} GB,",
        f"with mapped files {resident / 1e9:5.2f} GB",
        flush=True,
    )
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    result: dict[str, Any] = json.loads(said)
    return result


def _memory(pid: int) -> dict[str, int]:
    """The process's memory in bytes, by the kernel's names; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in pairs}


@click.command()
@click.argument("vocabulary", type=click.Path(path_type=Path, exists=True))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(vocabulary: Path, directory: Path) -> None:
    """Make the model in DIRECTORY, if it is not there, and take it through all commands."""
    parent, out = directory / "parent-Q4_K_M.gguf", directory / "specialist.gguf"
    profile, mask, text = directory / "profile.gguf", directory / "mask.json", directory / "text.txt"
    if not parent.exists():
        make(vocabulary, directory / "making.gguf")
        (directory / "making.gguf").rename(parent)
    text.write_text(" ".join(f"word {number}" for number in range(PROFILE_WORDS)), encoding="utf-8")
    facts = run("inspect", parent, "--keep", KEEP, "--ctx", 16384)
    profiled = run("profile", parent, "-c", text, "-o", profile, "--force")
    run("mask", profile, "--keep", KEEP, "-o", mask, "--force")
    run("prune", parent, "--mask", mask, "-o", out, "--force")
    verified = run("verify", out, "--parent", parent, "--mask", mask)
    smaller = run("inspect", out, "--ctx", 16384)
    print(f"\nprofiled {profiled['tokens']} tokens at {profiled['tokens_per_second']:.0f} tokens/s")
    for check in verified["checks"]:
        print(f"{'ok' if check['passed'] else 'FAILED'} {check['name']}: {check['detail']}")
    for name, found in (("parent", facts), (f"keep {KEEP}", smaller)):
        context = found["context"]["bytes"]
        print(
            f"{name:<8} {found['bytes'] / 1e9:6.2f} GB = {found['bytes'] / 2**30:6.2f} GiB on disk, of which",
            end=" ",
        )
        print(f"{found['expert_bytes'] / 1e9:.2f} GB in experts; context of 16384: {context / 2**30:.2f} GiB")
    saved = facts["bytes"] - smaller["bytes"]
    print(f"saved {saved / 1e9:.2f} GB = {saved / 2**30:.2f} GiB")
    print(f"inspect --keep {KEEP} foretold {facts['specialist']['bytes']} bytes of {smaller['bytes']}")


if __name__ == "__main__":
    main()
