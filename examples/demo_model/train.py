"""Train the demo model: a Gemma 4 mixture of experts small enough for a CPU.

Another ``--config`` trains another model in the same way: ``qwen3moe.json`` is a Qwen3 mixture of experts.

The router is kept alive by the load-balancing loss of Switch Transformers (arXiv:2101.03961, eq. 4) and
by a small z-loss (ST-MoE, arXiv:2202.08906, eq. 5). Batches hold the kinds of text in equal parts.

    python train.py --corpora corpora --tokenizer tokenizer --out model
    python train.py --config qwen3moe.json --corpora corpora --tokenizer tokenizer --out second --device cuda
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module, functional
from transformers import (
    AutoTokenizer,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

torch._dynamo.config.recompile_limit = 64
KINDS = ("python", "prose", "cpp")
DEMO = Path(__file__).parent / "config.json"


def token_stream(corpora: Path, tokenizer, kind: str, name: str) -> np.ndarray:
    """All documents of one kind and set as one array of token ids, each with a <bos> in front."""
    path = corpora / f"{kind}.{name}.jsonl"
    documents = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
    np.random.default_rng(0).shuffle(documents)
    stream: list[int] = []
    for start in range(0, len(documents), 64):
        for ids in tokenizer(documents[start : start + 64], add_special_tokens=False)["input_ids"]:
            stream += [tokenizer.bos_token_id, *ids]
    return np.array(stream, dtype=np.int64)


class Windows:
    """Non-overlapping windows of a stream in random order, for as many epochs as asked for."""

    def __init__(self, stream: np.ndarray, length: int, seed: int) -> None:
        self.rows = stream[: len(stream) // length * length].reshape(-1, length)
        self.generator = np.random.default_rng(seed)
        self.order: list[int] = []

    def take(self, count: int) -> np.ndarray:
        while len(self.order) < count:
            self.order += self.generator.permutation(len(self.rows)).tolist()
        taken, self.order = self.order[:count], self.order[count:]
        return self.rows[taken]


def keep_logits(router_projection, _, logits: Tensor) -> None:
    router_projection.seen = logits


def keep_choice(router, _, output: tuple[Tensor, Tensor, Tensor]) -> None:
    router.seen = output[2]


def watch_gemma4(router: Gemma4TextRouter) -> None:
    """Gemma's router returns probabilities; the logits are its projection's."""
    router.proj.register_forward_hook(keep_logits)
    router.register_forward_hook(keep_choice)


def keep_logits_and_choice(router, _, output: tuple[Tensor, Tensor, Tensor]) -> None:
    router.seen = output[0], output[2]


def watch_qwen3(router: Qwen3MoeTopKRouter) -> None:
    router.register_forward_hook(keep_logits_and_choice)


class Family(NamedTuple):
    """What differs between the architectures that can be trained."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    router: type[Module]
    watch: Callable[[Any], None]
    """Makes a router keep what it saw last."""
    seen: Callable[[Any], tuple[Tensor, Tensor]]
    """Of a watched router: its logits [token, expert] and its choices [token, rank]."""


FAMILIES = {
    "gemma4": Family(
        Gemma4TextConfig,
        Gemma4ForCausalLM,
        Gemma4TextRouter,
        watch_gemma4,
        lambda router: (router.proj.seen, router.seen),
    ),
    "qwen3_moe": Family(
        Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeTopKRouter, watch_qwen3, lambda router: router.seen
    ),
}


def router_losses(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Balance loss, z-loss, and each expert's share of the last pass's choices [layer, expert]."""
    logits = torch.stack([each for each, _ in seen]).float()
    chosen = torch.stack([each for _, each in seen])
    experts = logits.shape[-1]
    share = functional.one_hot(chosen, experts).float().mean((1, 2))
    balance = experts * (share * logits.softmax(-1).mean(1)).sum(-1).mean()
    return balance, logits.logsumexp(-1).square().mean(), share


@torch.compile
def cross_entropy(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """The model's own head, fused with the loss: the logits are the largest array of the run."""
    logits = (hidden @ embedding.T).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, targets)


def loss_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return cross_entropy(
        hidden[:, :-1].flatten(0, 1),
        model.lm_head.weight,
        tokens[:, 1:].flatten(),
        getattr(model.config, "final_logit_softcapping", None),
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, stream: np.ndarray, length: int, windows: int) -> float:
    rows = torch.from_numpy(stream[: windows * length].reshape(-1, length)).to(model.device)
    return math.exp(torch.stack([loss_of(model, part) for part in rows.split(10)]).mean().item())


def load_streams(corpora: Path, tokenizer_directory: Path) -> dict[str, dict[str, np.ndarray]]:
    """Token streams by kind and set, tokenised once and then kept beside the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    streams = {}
    for kind in KINDS:
        cache = tokenizer_directory / f"{kind}.npz"
        if not cache.exists():
            np.savez(cache, **{name: token_stream(corpora, tokenizer, kind, name) for name in ("train", "test")})
        streams[kind] = {name: stream.astype(np.int64) for name, stream in np.load(cache).items()}
        print(kind, {name: len(stream) for name, stream in streams[kind].items()}, flush=True)
    return streams


def build_model(settings: dict[str, Any], tokenizer) -> tuple[PreTrainedModel, list[Module]]:
    """A model with fresh weights, its layers compiled, and its routers, which keep what they saw last."""
    family = FAMILIES[settings["family"]]
    config = family.config(
        **settings["model"],
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = family.model._from_config(config, experts_implementation=settings["experts_implementation"])
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    routers = [module for module in model.modules() if isinstance(module, family.router)]
    for router in routers:
        family.watch(router)
    for layer in model.model.layers:
        layer.compile()
    return model, routers


def build_optimizer(
    settings: dict[str, Any], model: PreTrainedModel, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with weight decay on matrices only, a linear warm-up and a cosine down to 2 %."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.95), fused=True)
    warmup = settings["warmup_steps"]

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


class Batches:
    """Batches with equal parts of each kind; the remainder goes round."""

    def __init__(self, streams: dict[str, dict[str, np.ndarray]], batch: int, length: int) -> None:
        self.batch = batch
        self.windows = [Windows(streams[kind]["train"], length, seed) for seed, kind in enumerate(KINDS)]

    def take(self, step: int) -> Tensor:
        whole, rest = divmod(self.batch, len(KINDS))
        counts = [whole + ((kind - step) % len(KINDS) < rest) for kind in range(len(KINDS))]
        return torch.from_numpy(
            np.concatenate([windows.take(count) for windows, count in zip(self.windows, counts, strict=True)])
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--config", type=Path, default=DEMO, help="the model and its training; default: config.json"
    )
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, help="tokens to train on; default: as in the config")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda; default: cpu")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    if device.type == "cuda":
        # Not compiled: the whole run takes only minutes.
        torch.compiler.set_stance("force_eager")
        torch.set_float32_matmul_precision("high")
    settings = json.loads(arguments.config.read_text(encoding="utf-8"))
    torch.manual_seed(settings["seed"])

    length, batch = settings["length"], settings["batch"]
    steps = int((arguments.tokens or settings["tokens"]) // (batch * length))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    streams = load_streams(arguments.corpora, arguments.tokenizer)
    model, routers = build_model(settings, tokenizer)
    model.to(device)
    seen = FAMILIES[settings["family"]].seen
    optimizer, schedule = build_optimizer(settings, model, steps)
    batches = Batches(streams, batch, length)

    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.out)
    started, recent = time.monotonic(), []
    with (arguments.out / "log.jsonl").open("w", encoding="utf-8") as log:
        for step in range(1, steps + 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=settings["bfloat16"]):
                loss = loss_of(model, batches.take(step - 1).to(device))
            balance, z, load = router_losses([seen(router) for router in routers])
            (loss + settings["balance_loss"] * balance + settings["z_loss"] * z).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append(loss.item())
            evaluates = step % settings["evaluate_every"] == 0 or step == steps
            if not evaluates and step % settings["log_every"]:
                continue
            record = {
                "step": step,
                "tokens": step * batch * length,
                "loss": round(sum(recent) / len(recent), 4),
                "balance": round(balance.item(), 4),
                "least_used_expert": round(load.min().item() * load.shape[1], 3),
                "tokens_per_s": round(step * batch * length / (time.monotonic() - started)),
            }
            recent = []
            if evaluates:
                model.eval()
                windows = 200 if step == steps else 20
                record["test_perplexity"] = {
                    kind: round(perplexity(model, streams[kind]["test"], length, windows), 3) for kind in KINDS
                }
                model.train()
                model.save_pretrained(arguments.out)
            print(json.dumps(record), file=log, flush=True)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
