"""Write the demo's model as a Hugging Face checkpoint, to try what coe-native does with those.

Writes the weights of the packaged GGUF in float32, in several files with an index, and no tokenizer.

    python checkpoint.py checkpoint
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

MODEL = Path(__file__).parents[2] / "coe_native" / "demo_data" / "demo-Q8_0.gguf"
SETTINGS = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))["model"]
FILE_BYTES = 20_000_000

OUTSIDE = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
IN_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "layer_output_scale.weight": "layer_scalar",
}
"""llama.cpp's name to that in transformers."""


def name_of(name: str) -> str:
    if name in OUTSIDE:
        return f"model.{OUTSIDE[name]}"
    _, block, rest = name.split(".", 2)
    return f"model.layers.{block}.{IN_LAYER[rest]}"


def config(n_vocab: int) -> dict[str, object]:
    layers = SETTINGS["num_hidden_layers"]
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "float32",
        "vocab_size": n_vocab,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
        **SETTINGS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory to write")
    directory = parser.parse_args().directory
    if directory.exists():
        parser.error(f"{directory} exists")
    directory.mkdir()
    files: list[dict[str, np.ndarray]] = [{}]
    for tensor in GGUFReader(MODEL).tensors:
        if tensor.name == "rope_freqs.weight":  # computed from the config
            continue
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if sum(array.nbytes for array in files[-1].values()) + values.nbytes > FILE_BYTES:
            files.append({})
        files[-1][name_of(tensor.name)] = values
    weight_map = {}
    for number, tensors in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(tensors, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    total = sum(array.nbytes for tensors in files for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    n_vocab = next(len(t["model.embed_tokens.weight"]) for t in files if "model.embed_tokens.weight" in t)
    (directory / "config.json").write_text(json.dumps(config(n_vocab), indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
