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


def keep_logits(router_projection, inputs, logits: Tensor) -> None:
    router_projection.seen = logits


def keep_choice(router, inputs, output: tuple[Tensor, Tensor, Tensor]) -> None:
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

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    length, batch = SETTINGS["length"], SETTINGS["batch"]
    streams = {}
    for kind in KINDS:
        cache = arguments.tokenizer / f"{kind}.npz"
        if not cache.exists():
            sets = {n: token_stream(arguments.corpora, tokenizer, kind, n) for n in ("train", "test")}
            np.savez(cache, **sets)
        streams[kind] = np.load(cache)
        print(kind, {name: len(streams[kind][name]) for name in streams[kind]}, flush=True)

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

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": SETTINGS["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}],
        lr=SETTINGS["learning_rate"],
        betas=(0.9, 0.95),
        fused=True,
    )
    steps = int(arguments.tokens // (batch * length))
    warmup = SETTINGS["warmup_steps"]

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    windows = {kind: Windows(streams[kind]["train"], length, seed) for seed, kind in enumerate(KINDS)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = (arguments.out / "log.jsonl").open("w", encoding="utf-8")
    started, recent = time.monotonic(), []
    for step in range(steps):
        # Equal parts of each kind; the remainder of the batch goes round.
        counts = [batch // 3 + (1 if (kind - step) % 3 < batch % 3 else 0) for kind in range(3)]
        rows = np.concatenate([windows[kind].take(count) for kind, count in zip(KINDS, counts, strict=True)])
        with torch.autocast("cpu", torch.bfloat16, enabled=SETTINGS["bfloat16"]):
            loss = loss_of(model, torch.from_numpy(rows))
        balance, z, load = router_losses(routers)
        (loss + SETTINGS["balance_loss"] * balance + SETTINGS["z_loss"] * z).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        last = step == steps - 1
        if (step + 1) % SETTINGS["log_every"] == 0 or last:
            seen = (step + 1) * batch * length
            record = {
                "step": step + 1,
                "tokens": seen,
                "loss": round(sum(recent) / len(recent), 4),
                "balance": round(balance.item(), 4),
                "least_used_expert": round(load.min().item() * load.shape[1], 3),
                "tokens_per_s": round(seen / (time.monotonic() - started)),
            }
            recent = []
            if (step + 1) % SETTINGS["evaluate_every"] == 0 or last:
                model.eval()
                count = 200 if last else 20
                record["test_perplexity"] = {
                    kind: round(perplexity(model, streams[kind]["test"], length, count), 3) for kind in KINDS
                }
                model.train()
                model.save_pretrained(arguments.out)
                tokenizer.save_pretrained(arguments.out)
            print(json.dumps(record), file=log, flush=True)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
