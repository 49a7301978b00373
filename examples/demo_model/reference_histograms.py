"""Count the demo model's routing with transformers: the independent figures that coe-native must reproduce.

Every row of TOKENS is one window, run by itself and as it is (no ``<bos>`` is added). The result holds
``histograms`` (int64) and ``weight_sum`` (float64), both [layer, expert, rank]: how often an expert was a
token's rank-th choice, and the sum of the weights it then had.

    python reference_histograms.py --model model --tokens tokens.npy --out reference.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Gemma4ForCausalLM
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter


class Counter:
    """A forward hook on one router that adds up the choices it makes."""

    def __init__(self, router: Gemma4TextRouter) -> None:
        self.shape = (router.config.num_experts, router.config.top_k_experts)
        self.histogram = torch.zeros(self.shape, dtype=torch.int64)
        self.weight_sum = torch.zeros(self.shape, dtype=torch.float64)
        router.register_forward_hook(self)

    def __call__(self, _router: object, _inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        # The router returns its weights already multiplied by `per_expert_scale`, which is no routing
        # decision (llama.cpp folds it into the experts). Dividing by it would round, and fail at a scale of
        # zero; the probabilities and the choice are returned too, so the weights are formed again from them.
        probabilities, _, chosen = output
        weights = probabilities.gather(-1, chosen)
        weights = (weights / weights.sum(-1, keepdim=True)).double()
        assert (weights.sum(-1) - 1).abs().max() < 1e-6, "the weights of a token sum to 1"
        # Stable: equal weights keep the order of selection.
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        experts, top_k = self.shape
        cells = (chosen.gather(-1, order) * top_k + torch.arange(top_k)).flatten()
        self.histogram += cells.bincount(minlength=experts * top_k).view(self.shape)
        self.weight_sum += cells.bincount(weights.flatten(), experts * top_k).view(self.shape)


@torch.inference_mode()
def count(model_path: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    # The plainest implementations, in float32: nothing here should share a shortcut with what it checks.
    model = Gemma4ForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, experts_implementation="eager", attn_implementation="eager"
    ).eval()
    counters = [Counter(module) for module in model.modules() if isinstance(module, Gemma4TextRouter)]
    for row in torch.from_numpy(rows.astype(np.int64)):
        model.model(input_ids=row[None], use_cache=False)
    histograms = torch.stack([counter.histogram for counter in counters])
    assert (histograms.sum(1) == rows.size).all(), "every token makes one choice of each rank in each layer"
    weight_sum = torch.stack([counter.weight_sum for counter in counters])
    return {"histograms": histograms.numpy(), "weight_sum": weight_sum.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory that train.py wrote")
    parser.add_argument("--tokens", type=Path, required=True, help=".npy file, int32 [window, token]")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    arguments = parser.parse_args()

    rows = np.load(arguments.tokens)
    if rows.ndim != 2 or rows.dtype != np.int32 or not rows.size:
        raise SystemExit(f"{arguments.tokens}: expected int32 [window, token], got {rows.dtype} {rows.shape}")
    result = count(arguments.model, rows)
    np.savez(arguments.out, **result)
    layers, experts, top_k = result["histograms"].shape
    print(f"{arguments.out}: {rows.size} tokens, {layers} layers, {experts} experts, {top_k} choices a token")


if __name__ == "__main__":
    main()
