"""What makes each mixture-of-experts architecture of llama.cpp, in metadata alone: one row for each, and rows
for kinds of models that share an architecture.

Nobody lists tensors here: llama.cpp names those that it wants (random_models.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Metadata = dict[str, Any]

SOFTMAX, SIGMOID, SOFTMAX_WEIGHT, SQRT_SOFTPLUS = 1, 2, 3, 4
"""llama.cpp's numbers for gating functions."""

N_HEAD = 4
SLIDING_WINDOW = 16  # shorter than most tests' prompts, so that windows matter


@dataclass(frozen=True)
class Sizes:
    """What a model is made of, before its architecture has a say."""

    n_layers: int = 3
    n_experts: int = 16
    top_k: int = 4
    n_vocab: int = 256
    n_embd: int = 256
    n_ff_expert: int = 64

    @property
    def n_ff(self) -> int:
        """Width of a dense FFN: unlike an expert's, so that no code can mix them up unnoticed."""
        return 2 * self.n_ff_expert

    @property
    def head_size(self) -> int:
        return self.n_embd // N_HEAD


@dataclass(frozen=True)
class Architecture:
    """One row. `metadata`: keys without the architecture's name, over the shared ones. `moe_blocks`: the blocks
    that have experts and run. `architecture`: its name in GGUF, where the row is called otherwise. `fused`: the
    experts' gate and up matrices are one tensor. `scaled`: with the scales that NVFP4 models have beside their
    weights, one for each expert. `own_scales`: those that the architecture has anyway. `refused`: why it cannot
    be cut, as a part of the message. `unquantised`: why there is no quantised model of it."""

    metadata: Callable[[Sizes], Metadata] = lambda sizes: {}
    moe_blocks: Callable[[Sizes], list[int]] = lambda sizes: list(range(sizes.n_layers))
    n_layers: int = 3
    architecture: str = ""
    fused: bool = False
    scaled: bool = False
    own_scales: tuple[str, ...] = ()
    refused: str = ""
    unquantised: str = ""


def shared_metadata(sizes: Sizes) -> Metadata:
    """Keys that llama.cpp reads from every architecture, or that do no harm where it does not."""
    return {
        "vocab_size": sizes.n_vocab,
        "context_length": 1024,
        "embedding_length": sizes.n_embd,
        "block_count": sizes.n_layers,
        "leading_dense_block_count": 0,
        "feed_forward_length": sizes.n_ff,
        "expert_feed_forward_length": sizes.n_ff_expert,
        "expert_shared_feed_forward_length": sizes.n_ff,
        "expert_count": sizes.n_experts,
        "expert_used_count": sizes.top_k,
        "expert_shared_count": 1,
        "expert_gating_func": SOFTMAX,
        "expert_weights_norm": True,
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD // 2,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": SLIDING_WINDOW,
        "rope.dimension_count": sizes.head_size,
    }


def _pattern(sizes: Sizes, *values: Any) -> list[Any]:
    """One value a block, in turn."""
    return [values[block % len(values)] for block in range(sizes.n_layers)]


def _latent_attention(sizes: Sizes) -> Metadata:
    """Multi-head latent attention: keys and values come out of one vector."""
    rank, half = sizes.head_size, sizes.head_size // 2
    return {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": rank,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + half,
        "attention.value_length": rank,
        "attention.key_length_mla": sizes.head_size,
        "attention.value_length_mla": sizes.head_size,
        "rope.dimension_count": half,
    }


def _indexer(sizes: Sizes) -> Metadata:
    """Sparse attention whose indexer picks so many keys that it picks all."""
    return {
        "attention.indexer.head_count": N_HEAD,
        "attention.indexer.key_length": sizes.head_size,
        "attention.indexer.top_k": 4096,
        "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1,
    }


def _recurrence(sizes: Sizes) -> Metadata:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * sizes.n_embd,
        "ssm.state_size": 16,
        "ssm.time_step_rank": N_HEAD,
        "ssm.group_count": 2,
    }


def _delta_net(sizes: Sizes) -> Metadata:
    """Gated delta net in all layers but each second."""
    return {
        **_recurrence(sizes),
        "ssm.inner_size": sizes.n_embd,
        "ssm.state_size": sizes.n_embd // N_HEAD,
        "full_attention_interval": 2,
        "rope.dimension_sections": [8, 12, 12, 0],
    }


def _kimi_delta(sizes: Sizes) -> Metadata:
    """Kimi's delta attention in all layers but each second, which has latent attention."""
    return {
        **_latent_attention(sizes),
        "ssm.conv_kernel": 4,
        "kda.head_dim": sizes.head_size,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "attention.head_count_kv": _pattern(sizes, 0, 1),
        "attention.head_count": _pattern(sizes, N_HEAD, N_HEAD),
    }


def _biased_sigmoid(_: Sizes) -> Metadata:
    return {"expert_gating_func": SIGMOID, "expert_weights_scale": 2.5}


def _after_first(sizes: Sizes) -> list[int]:
    return list(range(1, sizes.n_layers))


def _odd(sizes: Sizes) -> list[int]:
    return list(range(1, sizes.n_layers, 2))


def _gemma4(sizes: Sizes) -> Metadata:
    sliding = [True] * (sizes.n_layers - 1) + [False]
    return {
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
        "attention.head_count_kv": [2 if slides else 1 for slides in sliding],
        "attention.key_length": 2 * sizes.head_size,
        "attention.value_length": 2 * sizes.head_size,
        "attention.key_length_swa": sizes.head_size,
        "attention.value_length_swa": sizes.head_size,
        "attention.sliding_window_pattern": sliding,
        "rope.dimension_count": 2 * sizes.head_size,
        "rope.dimension_count_swa": sizes.head_size,
        "rope.freq_base_swa": 1e4,
    }


def _nemotron(sizes: Sizes) -> Metadata:
    """Mamba, experts, attention, experts, each a block of its own; experts work on half as wide a state."""
    return {
        **_recurrence(sizes),
        **_biased_sigmoid(sizes),
        "feed_forward_length": _pattern(sizes, 0, sizes.n_ff),
        "attention.head_count_kv": [
            2 if block in (2, sizes.n_layers - 1) else 0 for block in range(sizes.n_layers)
        ],
        "moe_latent_size": sizes.n_embd // 2,
    }


def _deepseek4(sizes: Sizes) -> Metadata:
    return {
        "expert_gating_func": SQRT_SOFTPLUS,
        "expert_weights_scale": 1.5,
        "attention.head_count": 8,
        "attention.head_count_kv": 1,
        "attention.key_length": sizes.head_size,
        "attention.value_length": sizes.head_size,
        "attention.q_lora_rank": sizes.head_size,
        "attention.output_group_count": 8,
        "attention.output_lora_rank": 32,
        "attention.compress_ratios": [0, 0, 4, 128],
        "attention.compress_rope_freq_base": 160000.0,
        "attention.indexer.head_count": 64,
        "attention.indexer.key_length": 128,
        "attention.indexer.top_k": 4096,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 0,
        "swiglu_clamp_exp": 10.0,
        "rope.dimension_count": sizes.head_size // 2,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "afmoe": Architecture(
        lambda s: {**_biased_sigmoid(s), "leading_dense_block_count": 1}, moe_blocks=_after_first
    ),
    "arctic": Architecture(),
    "bailingmoe": Architecture(),
    "bailingmoe2": Architecture(_biased_sigmoid),
    "bailingmoe3": Architecture(lambda s: {**_kimi_delta(s), **_biased_sigmoid(s)}),
    "cohere2moe": Architecture(
        lambda s: {
            "logit_scale": 1.0,
            "attention.sliding_window_pattern": _pattern(s, 0, 1),
            "expert_gating_func": SIGMOID,
        }
    ),
    "dbrx": Architecture(lambda s: {"attention.clamp_kqv": 8.0}),
    "deepseek": Architecture(lambda s: {"leading_dense_block_count": 1}, moe_blocks=_after_first),
    "deepseek2": Architecture(
        lambda s: {**_latent_attention(s), **_biased_sigmoid(s), "leading_dense_block_count": 1},
        moe_blocks=_after_first,
    ),
    "deepseek2-ocr": Architecture(
        lambda s: {"leading_dense_block_count": 1, "attention.head_count_kv": N_HEAD}, moe_blocks=_after_first
    ),
    "deepseek32": Architecture(
        lambda s: {**_latent_attention(s), **_indexer(s), **_biased_sigmoid(s)},
    ),
    "deepseek4": Architecture(_deepseek4, n_layers=4),
    "dots1": Architecture(
        lambda s: {**_biased_sigmoid(s), "leading_dense_block_count": 1, "attention.head_count_kv": N_HEAD},
        moe_blocks=_after_first,
    ),
    "dots3note": Architecture(
        lambda s: {
            **_latent_attention(s),
            **_indexer(s),
            **_biased_sigmoid(s),
            "attention.kv_lora_rank_swa": s.head_size,
            "attention.key_length_swa": s.head_size + s.head_size // 2,
            "attention.value_length_swa": s.head_size,
            "attention.key_length_mla_swa": s.head_size,
            "attention.value_length_mla_swa": s.head_size,
            "rope.freq_base_swa": 1e4,
            "attention.indexer.types": _pattern(s, 1, 0),
            "attention.sliding_window_pattern": _pattern(s, 0, 1),
        }
    ),
    "ernie4_5-moe": Architecture(
        lambda s: {"interleave_moe_layer_step": 1, "leading_dense_block_count": 1}, moe_blocks=_after_first
    ),
    "exaone-moe": Architecture(_biased_sigmoid),
    "gemma4": Architecture(_gemma4, fused=True, own_scales=("ffn_down_exps.scale",)),
    "glm-dsa": Architecture(lambda s: {**_latent_attention(s), **_indexer(s), **_biased_sigmoid(s)}),
    "glm4moe": Architecture(
        lambda s: {**_biased_sigmoid(s), "leading_dense_block_count": 1}, moe_blocks=_after_first
    ),
    "glm5-next": Architecture(
        lambda s: {
            **_kimi_delta(s),
            **_indexer(s),
            **_biased_sigmoid(s),
            "attention.head_count": N_HEAD,
            "attention.key_length": s.head_size,
            "attention.indexer.kpool": 4,
            "attention.indexer.kpool_select_tail": True,
            "hyper_connection.count": 4,
            "hyper_connection.sinkhorn_iterations": 2,
            "hyper_connection.epsilon": 1e-6,
            "swiglu_clamp_exp": 10.0,
            "rope.dimension_count": 0,
        }
    ),
    "gpt-oss": Architecture(),
    "granite": Architecture(lambda s: {"logit_scale": 1.0}),
    "granite_swa": Architecture(
        lambda s: {"logit_scale": 1.0, "attention.sliding_window_pattern": _pattern(s, 0, 1)}
    ),
    "granitehybrid": Architecture(lambda s: {**_recurrence(s), "attention.head_count_kv": _pattern(s, 0, 2)}),
    "granitemoe": Architecture(lambda s: {"logit_scale": 1.0}),
    "grok": Architecture(),
    "grovemoe": Architecture(
        lambda s: {
            "experts_per_group": 2,
            "expert_group_scale": 0.5,
            "expert_chunk_feed_forward_length": 32,
            "attention.key_length": s.head_size,
        },
        refused="belongs to groups of experts",
    ),
    "hunyuan-moe": Architecture(),
    "hy_v3": Architecture(_biased_sigmoid),
    "hy_v4": Architecture(
        lambda s: {
            **_latent_attention(s),
            **_indexer(s),
            **_biased_sigmoid(s),
            "hyper_connection.count": 4,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.magnitude": 2.0,
            "swiglu_clamp_exp": 10.0,
            "attention.indexer.types": _pattern(s, 1, 0),
        }
    ),
    "jamba": Architecture(lambda s: {**_recurrence(s), "attention.head_count_kv": _pattern(s, 0, 2)}),
    "kimi-k3": Architecture(
        lambda s: {
            **_kimi_delta(s),
            **_biased_sigmoid(s),
            "expert_latent_length": s.n_embd // 2,
            "attn_res.block_size": 12,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        }
    ),
    "kimi-linear": Architecture(
        lambda s: {**_kimi_delta(s), **_biased_sigmoid(s), "leading_dense_block_count": 1}, moe_blocks=_after_first
    ),
    "laguna": Architecture(_biased_sigmoid),
    "lfm2moe": Architecture(
        lambda s: {
            **_biased_sigmoid(s),
            "shortconv.l_cache": 3,
            "attention.head_count_kv": _pattern(s, 0, 2),
            "leading_dense_block_count": 1,
        },
        moe_blocks=_after_first,
    ),
    "llada-moe": Architecture(lambda s: {"attention.head_count_kv": N_HEAD}),
    "llama": Architecture(),
    "llama-embed": Architecture(lambda s: {"attention.causal": False}),
    "llama4": Architecture(
        lambda s: {"interleave_moe_layer_step": 2, "expert_gating_func": SIGMOID}, moe_blocks=_odd, n_layers=4
    ),
    "maple": Architecture(
        lambda s: {"swiglu_clamp_exp": 7.0, "attention.sliding_window_pattern": _pattern(s, 0, 1)}
    ),
    "mellum": Architecture(),
    "mimo2": Architecture(
        lambda s: {"attention.sliding_window_pattern": _pattern(s, 0, 1), "expert_gating_func": SIGMOID}
    ),
    "minicpm": Architecture(),
    "minimax-01": Architecture(lambda s: {"residual_scale": 3.5, "full_attention_interval": 2}),
    "minimax-m2": Architecture(_biased_sigmoid),
    "minimax-m3": Architecture(lambda s: {**_indexer(s), **_biased_sigmoid(s), "attention.indexer.head_count": 2}),
    "mistral3": Architecture(),
    "mistral4": Architecture(lambda s: {**_latent_attention(s)}),
    "nemotron_h_moe": Architecture(_nemotron, moe_blocks=_odd, n_layers=4),
    "nomic-bert-moe": Architecture(
        lambda s: {
            "moe_every_n_layers": 2,
            "tokenizer.ggml.token_type_count": 1,
            "attention.causal": False,
            "attention.head_count_kv": N_HEAD,
        },
        moe_blocks=_odd,
    ),
    "olmoe": Architecture(lambda s: {"attention.head_count_kv": N_HEAD}),
    "phimoe": Architecture(),
    "qwen2moe": Architecture(),
    "qwen35moe": Architecture(_delta_net),
    "qwen3moe": Architecture(),
    "qwen3next": Architecture(_delta_net),
    "qwen3vlmoe": Architecture(lambda s: {"rope.dimension_sections": [8, 12, 12, 0]}),
    "qwen4exp": Architecture(
        lambda s: {
            **_delta_net(s),
            **_indexer(s),
            "hyper_connection.count": 4,
            "hyper_connection.sinkhorn_iterations": 2,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.low_rank": 8,
            "attention.compress_ratios": _pattern(s, 4),
            "ple.layers": [0],
            "ple.ngram_size": 3,
            "ple.heads_per_ngram": 2,
            "ple.conv_kernel": 4,
            "ple.eos_token_id": 0,
            "embedding_length_per_layer_input": s.n_embd // 4,
            "ple.layer_multipliers": [1, 3, 5],
            "ple.head_offsets": [i * s.n_vocab for i in range(4)],
            "ple.head_vocab_sizes": [s.n_vocab] * 4,
        },
        unquantised="llama.cpp quantises a tensor of it that it cannot add then",
    ),
    "rnd1": Architecture(lambda s: {"attention.causal": False}),
    "smallthinker": Architecture(),
    "step35": Architecture(
        lambda s: {**_biased_sigmoid(s), "attention.sliding_window_pattern": _pattern(s, 0, 1)}
    ),
    # Kinds of models that share an architecture with others.
    "qwen3next, fused": Architecture(_delta_net, architecture="qwen3next", fused=True),
    "qwen3moe, scaled": Architecture(architecture="qwen3moe", scaled=True),
    "gpt-oss, scaled": Architecture(architecture="gpt-oss", scaled=True),
    "bailingmoe2, softmax over the chosen": Architecture(
        lambda s: {"expert_gating_func": SOFTMAX_WEIGHT, "expert_weights_norm": False}, architecture="bailingmoe2"
    ),
    "deepseek2, softmax": Architecture(
        lambda s: {**_latent_attention(s), "expert_weights_norm": False, "expert_weights_scale": 16.0},
        architecture="deepseek2",
    ),
    "deepseek2, groups": Architecture(
        lambda s: {
            **_latent_attention(s),
            **_biased_sigmoid(s),
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        },
        architecture="deepseek2",
    ),
    "bailingmoe2, groups": Architecture(
        lambda s: {"expert_group_count": 2, "expert_group_used_count": 1}, architecture="bailingmoe2"
    ),
    "nemotron_h_moe, MTP": Architecture(
        lambda s: {**_nemotron(s), "nextn_predict_layers": 1},
        moe_blocks=lambda s: list(range(1, s.n_layers - 1, 2)),
        n_layers=5,
        architecture="nemotron_h_moe",
    ),
    "nemotron_h_moe, Puzzle": Architecture(
        lambda s: {
            **_nemotron(s),
            "expert_used_count": [0, s.top_k - 1, 0, s.top_k],
            "expert_feed_forward_length": [0, s.n_ff_expert, 0, s.n_ff_expert // 2],
        },
        moe_blocks=_odd,
        n_layers=4,
        architecture="nemotron_h_moe",
    ),
    "deepseek4, hash layers": Architecture(
        lambda s: {**_deepseek4(s), "hash_layer_count": 2},
        n_layers=4,
        architecture="deepseek4",
        refused="table from tokens to experts",
    ),
}


def _with_mtp(name: str) -> Architecture:
    """The same with one more block, which predicts further tokens."""
    row = ARCHITECTURES[name]
    return replace(
        row,
        metadata=lambda s: {**row.metadata(s), "nextn_predict_layers": 1},
        moe_blocks=lambda s: row.moe_blocks(replace(s, n_layers=s.n_layers - 1)),
        n_layers=row.n_layers + 1,
        architecture=row.architecture or name,
    )


# Not bailingmoe2, dots3note and exaone-moe, whose further blocks llama.cpp never loads, so that it names no
# tensors of theirs; and not deepseek4, where it looks into the file for them first.
_MTP = """bailingmoe3; cohere2moe; deepseek2; deepseek2, groups; deepseek32; glm-dsa; glm4moe; glm5-next; hy_v3;
mimo2; qwen35moe; qwen3next; step35"""

ARCHITECTURES |= {f"{name}, MTP": _with_mtp(name) for name in re.split(r";\s", _MTP)}

COVERED = {row.architecture or name for name, row in ARCHITECTURES.items()}

NOT_COVERED = {
    "refact": "llama.cpp loads its experts but its graph computes a dense FFN",
    "dflash": "a draft model: it runs on another model's hidden states only",
    "deci": "gguf has names for its experts, llama.cpp has no code for them",
    "lfm2": "shares its code with lfm2moe, and sets all its layers to be dense",
    "bert": "shares its code with nomic-bert-moe, and never asks for experts",
    "phi3": "shares its code with phimoe, and never asks for experts",
    "ernie4_5": "shares its code with ernie4_5-moe, and never asks for experts",
    "paddleocr": "shares its code with ernie4_5-moe, and never asks for experts",
    "nemotron_h": "shares its code with nemotron_h_moe",
}
"""Architectures whose code in llama.cpp mentions experts, and why none of the rows is of them."""
