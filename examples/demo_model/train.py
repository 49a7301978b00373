"""Train the demo model: a Gemma 4 mixture of experts small enough for a CPU.

The router is kept alive by the load-balancing loss of Switch Transformers (arXiv:2101.03961, eq. 4) and
by a small z-loss (ST-MoE, arXiv:2202.08906, eq. 5). Batches hold the kinds of text in equal parts.

    python train.py --corpora corpora --tokenizer tokenizer --out model
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRouter

torch._dynamo.config.recompile_limit = 64
KINDS = ("python", "prose", "cpp")
SETTINGS = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))


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


def router_losses(routers: list[Gemma4TextRouter]) -> tuple[Tensor, Tensor, Tensor]:
    """Balance loss, z-loss, and each expert's share of the last pass's choices [layer, expert]."""
    logits = torch.stack([router.proj.seen for router in routers]).float()
    chosen = torch.stack([router.seen for router in routers])
    experts = logits.shape[-1]
    share = functional.one_hot(chosen, experts).float().mean((1, 2))
    balance = experts * (share * logits.softmax(-1).mean(1)).sum(-1).mean()
    return balance, logits.logsumexp(-1).square().mean(), share


@torch.compile
def cross_entropy(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """The model's own head, fused with the loss: the logits are the largest array of the run."""
    logits = (hidden @ embedding.T).float()
    return functional.cross_entropy(softcap * torch.tanh(logits / softcap), targets)


def loss_of(model: Gemma4ForCausalLM, tokens: Tensor) -> Tensor:
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    return cross_entropy(
        hidden[:, :-1].flatten(0, 1),
        model.lm_head.weight,
        tokens[:, 1:].flatten(),
        model.config.final_logit_softcapping,
    )


@torch.no_grad()
def perplexity(model: Gemma4ForCausalLM, stream: np.ndarray, length: int, windows: int) -> float:
    rows = torch.from_numpy(stream[: windows * length].reshape(-1, length))
    return math.exp(torch.stack([loss_of(model, part) for part in rows.split(10)]).mean().item())


def load_streams(corpora: Path, tokenizer_directory: Path) -> dict[str, dict[str, np.ndarray]]:
    """Token streams by kind and set, tokenised once and then kept beside the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory)
    streams = {}
    for kind in KINDS:
        cache = tokenizer_directory / f"{kind}.npz"
        if not cache.exists():
            np.savez(cache, **{name: token_stream(corpora, tokenizer, kind, name) for name in ("train", "test")})
        streams[kind] = dict(np.load(cache))
        print(kind, {name: len(stream) for name, stream in streams[kind].items()}, flush=True)
    return streams


def build_model(tokenizer) -> tuple[Gemma4ForCausalLM, list[Gemma4TextRouter]]:
    """A model with fresh weights, its layers compiled, and its routers, which keep what they saw last."""
    config = Gemma4TextConfig(
        **SETTINGS["model"],
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = Gemma4ForCausalLM._from_config(config, experts_implementation=SETTINGS["experts_implementation"])
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    routers = [module for module in model.modules() if isinstance(module, Gemma4TextRouter)]
    for router in routers:
        router.proj.register_forward_hook(keep_logits)
        router.register_forward_hook(keep_choice)
    for layer in model.model.layers:
        layer.compile()
    return model, routers


def build_optimizer(
    model: Gemma4ForCausalLM, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with weight decay on matrices only, a linear warm-up and a cosine down to 2 %."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": SETTINGS["weight_decay"]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=(0.9, 0.95), fused=True)
    warmup = SETTINGS["warmup_steps"]

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=SETTINGS["tokens"], help="stop after so many")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SETTINGS["seed"])

    length, batch = SETTINGS["length"], SETTINGS["batch"]
    steps = int(arguments.tokens // (batch * length))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    streams = load_streams(arguments.corpora, arguments.tokenizer)
    model, routers = build_model(tokenizer)
    optimizer, schedule = build_optimizer(model, steps)
    batches = Batches(streams, batch, length)

    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.out)
    started, recent = time.monotonic(), []
    with (arguments.out / "log.jsonl").open("w", encoding="utf-8") as log:
        for step in range(1, steps + 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=SETTINGS["bfloat16"]):
                loss = loss_of(model, batches.take(step - 1))
            balance, z, load = router_losses(routers)
            (loss + SETTINGS["balance_loss"] * balance + SETTINGS["z_loss"] * z).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            recent.append(loss.item())
            evaluates = step % SETTINGS["evaluate_every"] == 0 or step == steps
            if not evaluates and step % SETTINGS["log_every"]:
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
