"""Pruned checkpoints against pruned GGUFs, for small models of seven architectures.

    python -m benchmarks.checkpoint_equality DIRECTORY --llama-cpp PATH/TO/llama.cpp

For each model, llama.cpp's converter makes of the pruned checkpoint what pruning the converted GGUF gives,
byte for byte. The pruned checkpoint's logits in transformers are compared with the live-masked GGUF's, and the
parent's with its GGUF's: the largest difference of all tokens, and that of the median token, as a share of the
largest logit. Weights are random, or trained for --steps. Needs
``pip install '.[reference]'``, and the sources of llama.cpp.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
import torch
import transformers

import coe_native as coe
from coe_native.recipes.demo import DATA

N_VOCAB, KEEP = 320, 4


def tokens_of(text: bytes) -> np.ndarray[Any, np.dtype[np.int32]]:
    """One token for each byte, after three that are special in some models."""
    return np.frombuffer(text, np.uint8).astype(np.int32) + 3


TOKENS = tokens_of((DATA / "python.test.jsonl").read_bytes()[1000:1100])

COMMON: dict[str, Any] = {
    **{"vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512},
    "num_experts_per_tok": 2,
}
LATENT: dict[str, Any] = {
    **{"num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "moe_intermediate_size": 32},
    **{"first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16},
    **{"qk_nope_head_dim": 16, "v_head_dim": 16},
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Qwen3-MoE": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {"num_local_experts": 8}),
    "OLMoE": ("OlmoeConfig", "OlmoeForCausalLM", {"num_experts": 8, "num_key_value_heads": 4, "head_dim": None}),
    "DeepSeek-V2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        {**LATENT, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False},
    ),
    "DeepSeek-V3": (
        "DeepseekV3Config",
        "DeepseekV3ForCausalLM",
        {**LATENT, "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **{"num_local_experts": 8, "intermediate_size": 64},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "Gemma 4": (
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        {
            **{"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 32},
            **{"expert_intermediate_size": 32, "global_head_dim": 32, "hidden_size_per_layer_input": 0},
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 64,
        },
    ),
}

CONVERTER = """
import importlib, pathlib, sys
source = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(source), str(source / "gguf-py")]
import conversion.base as base
import convert_hf_to_gguf
for module in (source / "conversion").glob("*.py"):
    importlib.import_module(f"conversion.{module.stem}")
n_vocab = int(sys.argv[4])
def without_tokenizer(kind):
    if "set_vocab" in vars(kind):
        kind.set_vocab = lambda self: (self._set_vocab_none(), self.gguf_writer.add_vocab_size(n_vocab))
    for below in kind.__subclasses__():
        without_tokenizer(below)
without_tokenizer(base.ModelBase)
sys.argv[1:] = [sys.argv[2], "--outfile", sys.argv[3], "--outtype", "f32"]
convert_hf_to_gguf.main()
"""


def write_checkpoint(name: str, directory: Path, n_steps: int) -> None:
    """A model in BF16, random or trained on the demo's texts, in several files, as transformers saves it."""
    config, kind, special = MODELS[name]
    options = {key: value for key, value in {**COMMON, **special}.items() if value is not None}
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    randomise(model)
    if n_steps:
        train(model, n_steps)
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="150KB")
    # The converter looks here how many rows of the embedding are tokens.
    vocabulary = {"model": {"vocab": {str(token): token for token in range(N_VOCAB)}}, "added_tokens": []}
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary))


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1 if "norm" in parameter_name else 0.05)
        for buffer_name, buffer in model.named_buffers():
            if "correction" in buffer_name:
                buffer.copy_(torch.randn_like(buffer) * 0.05)


def train(model: torch.nn.Module, n_steps: int) -> None:
    """Train on bytes of the demo's texts, and say what came of it."""
    data = b"".join((DATA / f"{kind}.profile.jsonl").read_bytes() for kind in ("python", "prose", "cpp"))
    tokens = torch.from_numpy(tokens_of(data).astype(np.int64))
    drawn = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(n_steps):
        starts = torch.randint(len(tokens) - 129, (16,), generator=drawn)
        rows = torch.stack([tokens[start : start + 129] for start in starts])
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step in (0, n_steps - 1):
            print(f"<!-- step {step + 1}: loss {loss.item():.2f} -->", flush=True)


def convert(llama_cpp: Path, directory: Path, out: Path) -> None:
    line = [sys.executable, "-c", CONVERTER, str(llama_cpp), str(directory), str(out), str(N_VOCAB)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{directory} cannot be converted: {done.stderr[-500:]}")


def random_mask(path: Path) -> coe.ExpertMask:
    model = coe.MoeModel(path)
    drawn = random.Random(1)
    groups = model.router_shape.groups()
    kept = {
        block: tuple(sorted(expert for group in groups for expert in drawn.sample(group, KEEP // len(groups))))
        for block in model.blocks
    }
    return coe.ExpertMask(model.architecture, model.fingerprint, model.n_experts, KEEP, kept)


def equal_tensors(ours: Path, theirs: Path) -> tuple[int, int]:
    """How many tensors of two files are equal, and how many there are in either."""
    first, second = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    equal = sum(
        name in second
        and (tensor.tensor_type, list(tensor.shape)) == (second[name].tensor_type, list(second[name].shape))
        and tensor.data.tobytes() == second[name].data.tobytes()
        for name, tensor in first.items()
    )
    return equal, len(first.keys() | second.keys())


def logits(directory: Path) -> np.ndarray[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor(TOKENS[None].astype(np.int64))).logits[0])


def difference(directory: Path, path: Path, mask: coe.ExpertMask | None = None) -> str:
    """The largest and the median token's difference of a checkpoint's logits from a GGUF's under a mask."""
    theirs = logits(directory)
    with coe.Model(path, n_ctx=128, n_batch=128, f32_kv=True) as model:
        if mask is not None:
            model.apply(mask)
        found = np.abs(model.outputs(TOKENS) - theirs).max(axis=1) / np.abs(theirs).max()
    return f"{found.max():.0e}, {np.median(found):.0e}"


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--llama-cpp", type=click.Path(path_type=Path, file_okay=False, exists=True), required=True)
@click.option("--steps", type=click.IntRange(0), default=0, show_default=True, help="Steps of training.")
@click.option("--only", type=click.Choice(list(MODELS)), multiple=True)
def main(directory: Path, llama_cpp: Path, steps: int, only: tuple[str, ...]) -> None:
    transformers.utils.logging.set_verbosity_error()
    print("| model | tensors | equal | pruned: largest, median | parent: largest, median |")
    print("| --- | --- | --- | --- | --- |")
    for name in only or MODELS:
        work = directory / name.replace(" ", "-")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        write_checkpoint(name, work / "parent", steps)
        convert(llama_cpp, work / "parent", work / "parent.gguf")
        mask = random_mask(work / "parent.gguf")
        mask.save(work / "mask.json")
        coe.prune_checkpoint(work / "parent", mask, work / "pruned")
        checks = coe.verify_checkpoint(work / "pruned", work / "parent", mask)
        if failed := [check for check in checks if not check.passed]:
            raise SystemExit(f"{name}: {failed}")
        convert(llama_cpp, work / "pruned", work / "converted.gguf")
        coe.prune(work / "parent.gguf", mask, work / "pruned.gguf", sampling=None)
        equal, total = equal_tensors(work / "converted.gguf", work / "pruned.gguf")
        pruned = difference(work / "pruned", work / "parent.gguf", mask)
        parent = difference(work / "parent", work / "parent.gguf")
        print(f"| {name} | {total} | {equal} | {pruned} | {parent} |", flush=True)


if __name__ == "__main__":
    main()
