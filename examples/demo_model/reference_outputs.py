"""Sum the norms of the demo model's expert outputs with transformers: figures that coe-native must reproduce.

The model is the one that ships, its weights read back from the GGUF and taken as they are in float32, so that
nothing else is needed to make the figures again. Every row of TOKENS is one window. The result holds ``counts``
(int64), ``norm_sum`` and ``weighted_norm_sum`` (float64), all [layer, expert]: how many tokens chose an expert,
and the sums over them of the norm of its output, before and after the router's weight.

    python reference_outputs.py --model demo-Q8_0.gguf --tokens few.npy --out outputs.npz
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from torch import Tensor
from transformers import Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts, Gemma4TextRouter

SETTINGS = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))


def restore(path: Path) -> Gemma4ForCausalLM:
    """The model of a GGUF that convert.py has written, in float32 and by the plainest implementations."""
    stored = {}
    for tensor in GGUFReader(path).tensors:
        stored[tensor.name] = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    config = Gemma4TextConfig(vocab_size=len(stored["token_embd.weight"]), **SETTINGS["model"])
    model = Gemma4ForCausalLM._from_config(
        config, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
    ).eval()
    names = get_tensor_name_map(MODEL_ARCH.GEMMA4, config.num_hidden_layers)
    state = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":  # the embeddings once more
            continue
        state[name] = stored.pop(in_file(name, names)).view(parameter.shape)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    assert set(stored) == {"rope_freqs.weight"}, f"not in transformers: {sorted(stored)}"
    return model


def in_file(name: str, names: object) -> str:
    """What llama.cpp's converter calls a tensor of transformers'."""
    block = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("router.scale"):
        return f"blk.{block}.ffn_gate_inp.scale"
    if name.endswith("router.per_expert_scale"):
        return f"blk.{block}.ffn_down_exps.scale"
    found = names.get_name(name.removesuffix(".weight"), try_suffixes=(".weight",))
    assert found is not None, f"{name}: the converter has no name for it"
    return found.removesuffix(".weight") + ".weight"


class Summer:
    """Forward hooks on the router and the experts of one layer, which add up what each expert puts out."""

    def __init__(self, router: Gemma4TextRouter, experts: Gemma4TextExperts) -> None:
        n_experts = experts.num_experts
        self.scale = router.per_expert_scale
        self.counts = torch.zeros(n_experts, dtype=torch.int64)
        self.norm_sum = torch.zeros(n_experts, dtype=torch.float64)
        self.weighted_norm_sum = torch.zeros(n_experts, dtype=torch.float64)
        router.register_forward_hook(self.see_choices)
        experts.register_forward_pre_hook(self.see_input)

    def see_choices(self, _router: object, _inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        # As in reference_histograms.py: the weights without the scale of each expert, which is the expert's.
        probabilities, _, self.chosen = output
        weights = probabilities.gather(-1, self.chosen)
        self.weights = (weights / weights.sum(-1, keepdim=True)).double()

    def see_input(self, experts: Gemma4TextExperts, inputs: tuple[Tensor, ...]) -> None:
        hidden = inputs[0].reshape(-1, inputs[0].shape[-1])
        for expert in range(experts.num_experts):
            tokens, ranks = (self.chosen == expert).nonzero(as_tuple=True)
            gate, up = (hidden[tokens] @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            output = (experts.act_fn(gate) * up) @ experts.down_proj[expert].T * self.scale[expert]
            norms = output.double().norm(dim=-1)
            self.counts[expert] += len(tokens)
            self.norm_sum[expert] += norms.sum()
            self.weighted_norm_sum[expert] += (norms * self.weights[tokens, ranks]).sum()


@torch.inference_mode()
def outputs(model: Gemma4ForCausalLM, rows: np.ndarray) -> dict[str, np.ndarray]:
    layers = [module for module in model.modules() if hasattr(module, "router") and hasattr(module, "experts")]
    summers = [Summer(layer.router, layer.experts) for layer in layers]
    for row in torch.from_numpy(rows.astype(np.int64)):
        model.model(input_ids=row[None], use_cache=False)
    assert all(summer.counts.sum() == rows.size * SETTINGS["model"]["top_k_experts"] for summer in summers)
    return {
        name: torch.stack([getattr(summer, name) for summer in summers]).numpy()
        for name in ("counts", "norm_sum", "weighted_norm_sum")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="GGUF of the demo model")
    parser.add_argument("--tokens", type=Path, required=True, help=".npy or .npz (tokens) file, [window, token]")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    arguments = parser.parse_args()
    rows = np.load(arguments.tokens)
    rows = rows if isinstance(rows, np.ndarray) else rows["tokens"]
    result = outputs(restore(arguments.model), rows)
    np.savez_compressed(arguments.out, **result)
    print(f"{arguments.out}: {rows.size} tokens, {result['counts'].shape} experts")


if __name__ == "__main__":
    main()
