"""Small Hugging Face checkpoints of many forms, with random bytes, and what pruning must leave of them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coe_native.masks.expert_mask import ExpertMask

EXPERTS, WIDTH, HIDDEN = 8, 12, 6
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "U32": 4}


@dataclass
class Made:
    """A checkpoint in memory.

    Tensors are arrays of bytes [*shape, size of a value]; `cut` says which belong to experts: (layer, expert), or
    (layer, None) where the first dimension counts all experts.
    """

    config: dict[str, Any]
    tensors: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    cut: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    routers: dict[int, str] = field(default_factory=dict)
    seed: int = 0

    def add(self, name: str, dtype: str, *shape: int, of: tuple[int, int | None] | None = None) -> None:
        numbers = np.random.default_rng([self.seed, len(self.tensors)])
        data = numbers.integers(0, 256, (*shape, SIZES[dtype]), np.uint8)
        if dtype in ("BF16", "F32"):  # finite: the exponent is in the last byte
            data[..., -1] = 0x3C
        elif dtype == "F16":
            data[..., -1] &= 0x3F
        self.tensors[name] = dtype, data
        if of is not None:
            self.cut[name] = of

    def router(self, name: str, layer: int, dtype: str = "BF16") -> None:
        self.add(name, dtype, EXPERTS, WIDTH, of=(layer, None))
        self.routers[layer] = name

    def values(self, layer: int) -> np.ndarray:
        """The router's values, float32 [n_experts, n_embd]."""
        dtype, data = self.tensors[self.routers[layer]]
        if dtype == "BF16":
            data = np.concatenate([np.zeros_like(data), data], -1)
        return np.ascontiguousarray(data).view("<f2" if dtype == "F16" else "<f4")[..., 0].astype("<f4")


def numbered(made: Made, module: str, layer: int, parts: Mapping[str, str], **more: str) -> None:
    for expert in range(EXPERTS):
        for part, dtype in parts.items():
            made.add(f"{module}.experts.{expert}.{part}.weight", dtype, HIDDEN, WIDTH, of=(layer, expert))
            for suffix, kind in more.items():
                made.add(f"{module}.experts.{expert}.{part}.{suffix}", kind, 2, 3, of=(layer, expert))


GATED = ("gate_proj", "up_proj", "down_proj")


def around(made: Made, prefix: str, n_layers: int) -> None:
    """What every model has, with dimensions that are equal to the number of experts by chance."""
    made.add(f"{prefix}embed_tokens.weight", "BF16", 20, WIDTH)
    for layer in range(n_layers):
        made.add(f"{prefix}layers.{layer}.self_attn.q_proj.weight", "BF16", EXPERTS, WIDTH)
        made.add(f"{prefix}layers.{layer}.self_attn.q_norm.weight", "BF16", EXPERTS)
        made.add(f"{prefix}layers.{layer}.input_layernorm.weight", "BF16", WIDTH)


def qwen3() -> Made:
    made = Made({"num_hidden_layers": 2, "num_experts": EXPERTS, "num_experts_per_tok": 2})
    around(made, "model.", 2)
    for layer in range(2):
        made.router(f"model.layers.{layer}.mlp.gate.weight", layer)
        numbered(made, f"model.layers.{layer}.mlp", layer, dict.fromkeys(GATED, "BF16"))
        made.add(f"model.layers.{layer}.mlp.shared_expert.up_proj.weight", "BF16", EXPERTS, WIDTH)
        made.add(f"model.layers.{layer}.mlp.shared_expert_gate.weight", "BF16", 1, WIDTH)
    return made


def mixtral() -> Made:
    made = Made({"num_hidden_layers": 2, "num_local_experts": EXPERTS, "num_experts_per_tok": 2})
    around(made, "model.", 2)
    for layer in range(2):
        made.router(f"model.layers.{layer}.block_sparse_moe.gate.weight", layer, "F16")
        numbered(made, f"model.layers.{layer}.block_sparse_moe", layer, dict.fromkeys(("w1", "w2", "w3"), "F16"))
        made.add(
            f"model.layers.{layer}.block_sparse_moe.e_score_correction_bias", "F32", EXPERTS, of=(layer, None)
        )
    return made


def deepseek() -> Made:
    """In FP8 with scales: a dense first layer, two groups of experts, and a layer that predicts a token more."""
    made = Made(
        {
            **{
                "num_hidden_layers": 3,
                "n_routed_experts": EXPERTS,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
            },
            **{"n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1, "ep_size": 1},
        }
    )
    around(made, "model.", 4)
    made.add("model.layers.0.mlp.gate_proj.weight", "BF16", EXPERTS, WIDTH)
    for layer in range(1, 4):
        made.router(f"model.layers.{layer}.mlp.gate.weight", layer)
        made.add(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", "F32", EXPERTS, of=(layer, None))
        numbered(made, f"model.layers.{layer}.mlp", layer, dict.fromkeys(GATED, "F8_E4M3"), weight_scale_inv="F32")
        made.add(f"model.layers.{layer}.mlp.shared_experts.up_proj.weight", "BF16", EXPERTS, WIDTH)
    made.add("model.layers.3.eh_proj.weight", "BF16", WIDTH, 2 * WIDTH)
    return made


def gpt_oss() -> Made:
    made = Made(
        {"num_hidden_layers": 2, "num_local_experts": EXPERTS, "experts_per_token": 2, "num_experts_per_tok": 2}
    )
    around(made, "model.", 2)
    for layer in range(2):
        module = f"model.layers.{layer}.mlp"
        made.router(f"{module}.router.weight", layer)
        made.add(f"{module}.router.bias", "BF16", EXPERTS, of=(layer, None))
        for part in ("gate_up_proj", "down_proj"):
            made.add(f"{module}.experts.{part}_blocks", "U8", EXPERTS, HIDDEN, 1, 16, of=(layer, None))
            made.add(f"{module}.experts.{part}_scales", "U8", EXPERTS, HIDDEN, 1, of=(layer, None))
            made.add(f"{module}.experts.{part}_bias", "BF16", EXPERTS, HIDDEN, of=(layer, None))
    return made


def gemma4() -> Made:
    config = {"num_hidden_layers": 2, "num_experts": EXPERTS, "top_k_experts": 2}
    made = Made({"text_config": config, "vision_config": {"num_hidden_layers": 5, "num_experts": None}})
    around(made, "model.language_model.", 2)
    for layer in range(2):
        module = f"model.language_model.layers.{layer}"
        made.add(f"{module}.experts.gate_up_proj", "BF16", EXPERTS, HIDDEN, WIDTH, of=(layer, None))
        made.add(f"{module}.experts.down_proj", "BF16", EXPERTS, WIDTH, HIDDEN, of=(layer, None))
        made.router(f"{module}.router.proj.weight", layer)
        made.add(f"{module}.router.scale", "BF16", WIDTH)
        made.add(f"{module}.router.per_expert_scale", "BF16", EXPERTS, of=(layer, None))
        made.add(f"{module}.mlp.gate_proj.weight", "BF16", EXPERTS, WIDTH)
    made.add("model.vision_tower.layers.0.mlp.gate_proj.weight", "BF16", EXPERTS, WIDTH)
    return made


def granite() -> Made:
    made = Made({"num_hidden_layers": 2, "num_local_experts": EXPERTS, "num_experts_per_tok": 2})
    around(made, "model.", 2)
    for layer in range(2):
        module = f"model.layers.{layer}.block_sparse_moe"
        made.add(f"{module}.input_linear.weight", "BF16", EXPERTS, HIDDEN, WIDTH, of=(layer, None))
        made.add(f"{module}.output_linear.weight", "BF16", EXPERTS, WIDTH, HIDDEN, of=(layer, None))
        made.router(f"{module}.router.layer.weight", layer, "F32")
    return made


def ernie() -> Made:
    """Its correction bias begins with a dimension of 1, and its numbers of chosen experts are a list."""
    made = Made({"num_hidden_layers": 2, "moe_num_experts": EXPERTS, "moe_topk": [2, 2]})
    around(made, "model.", 2)
    for layer in range(2):
        module = f"model.layers.{layer}.mlp"
        made.router(f"{module}.gate.weight", layer, "F32")
        made.add(f"{module}.moe_statics.e_score_correction_bias", "F32", 1, EXPERTS, of=(layer, None))
        numbered(made, module, layer, dict.fromkeys(GATED, "BF16"))
    return made


def mlx() -> Made:
    """Quantised by groups, the router too."""
    made = Made({"num_hidden_layers": 2, "num_experts": EXPERTS, "num_experts_per_tok": 2})
    around(made, "model.", 2)
    for layer in range(2):
        module = f"model.layers.{layer}.mlp"
        for part in GATED:
            made.add(f"{module}.switch_mlp.{part}.weight", "U32", EXPERTS, HIDDEN, 2, of=(layer, None))
            for suffix in ("scales", "biases"):
                made.add(f"{module}.switch_mlp.{part}.{suffix}", "BF16", EXPERTS, HIDDEN, 1, of=(layer, None))
        made.router(f"{module}.gate.weight", layer, "U32")
        for suffix in ("scales", "biases"):
            made.add(f"{module}.gate.{suffix}", "BF16", EXPERTS, 1, of=(layer, None))
    return made


FORMS: dict[str, Callable[[], Made]] = {
    made.__name__: made for made in (qwen3, mixtral, deepseek, gpt_oss, gemma4, granite, ernie, mlx)
}


def write(made: Made, directory: Path, n_files: int = 1) -> None:
    """Write a checkpoint of one file, or of several with an index, and small files beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    names = list(made.tensors)
    files = (
        ["model.safetensors"]
        if n_files == 1
        else [f"model-{n + 1:05}-of-{n_files:05}.safetensors" for n in range(n_files)]
    )
    weight_map = {name: files[at % n_files] for at, name in enumerate(names)}
    for file in files:
        write_safetensors(directory / file, {n: made.tensors[n] for n in names if weight_map[n] == file})
    if n_files > 1:
        size = sum(data.nbytes for _, data in made.tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(made.config, indent=2))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "pytorch_model.bin").write_bytes(b"the same weights")


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": data.shape[:-1], "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(data.tobytes() for _, data in tensors.values())
    )


def read(directory: Path) -> dict[str, tuple[str, np.ndarray]]:
    """All tensors of a directory, by an independent reader."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + length + at for at in entry["data_offsets"])
            shape = (*entry["shape"], SIZES[entry["dtype"]])
            assert name not in found
            found[name] = entry["dtype"], np.frombuffer(data[begin:end], np.uint8).reshape(shape)
    return found


def pruned(made: Made, kept: Mapping[int, Sequence[int]]) -> dict[str, tuple[str, np.ndarray]]:
    """Brute force: the tensors of the pruned checkpoint."""
    expected: dict[str, tuple[str, np.ndarray]] = {}
    for name, (dtype, data) in made.tensors.items():
        layer, expert = made.cut.get(name, (-1, None))
        if name not in made.cut:
            expected[name] = dtype, data
        elif expert is None:
            axis = 1 if data.shape[0] == 1 else 0
            expected[name] = dtype, np.take(data, list(kept[layer]), axis)
        elif expert in kept[layer]:
            new = name.replace(f".experts.{expert}.", f".experts.{list(kept[layer]).index(expert)}.")
            expected[new] = dtype, data
    return expected


def fingerprint(made: Made, architecture: str, n_blocks: int) -> str:
    """That of the model's GGUF, as docs/formats.md says."""
    digest = hashlib.sha256()
    for part in (architecture, n_blocks, EXPERTS, 2):
        digest.update(f"{part}\0".encode())
    for layer in sorted(made.routers):
        digest.update(f"blk.{layer}.ffn_gate_inp.weight\0({WIDTH}, {EXPERTS})\0".encode() + b"0\0")
        digest.update(made.values(layer).tobytes())
    return digest.hexdigest()


def mask_for(
    made: Made, kept: Mapping[int, Sequence[int]], n_blocks: int, architecture: str = "some"
) -> ExpertMask:
    return ExpertMask(
        architecture=architecture,
        fingerprint=fingerprint(made, architecture, n_blocks),
        n_experts=EXPERTS,
        keep=len(next(iter(kept.values()))),
        kept={layer: tuple(experts) for layer, experts in kept.items()},
    )
