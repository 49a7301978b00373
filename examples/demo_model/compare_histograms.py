"""Hold our histograms against those of router hooks in ``transformers``, and print the agreement.

First write the token windows, then the reference, then compare:

    python compare_histograms.py tokens --model gguf/demo-F32.gguf --out tokens.npy
    python reference_histograms.py --model model --tokens tokens.npy --out reference.npz
    python compare_histograms.py compare --reference reference.npz --tokens tokens.npy gguf/demo-*.gguf

Histogram mass is the share of choices that both put into the same cell of [layer, expert, rank]; the masks
are those that keep half the experts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import coe_native as coe
from coe_native.recipes import demo

WINDOW = 512


def write_tokens(model: Path, out: Path, windows: int) -> None:
    """The first full windows of every kind's shipped profile text, int32 [window, 512]."""
    rows = []
    with coe.Model(model) as loaded:
        for kind in demo.KINDS:
            stream = np.concatenate([loaded.tokenize(d.content) for d in demo.corpus(kind, "profile").documents])
            rows.append(stream[: len(stream) // WINDOW * WINDOW].reshape(-1, WINDOW)[:windows])
    np.save(out, np.concatenate(rows).astype(np.int32))
    print(f"{out}: {sum(map(len, rows))} windows of {WINDOW} tokens")


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.minimum(ours, theirs).sum() / theirs.sum())


def compare(reference: Path, tokens: Path, models: list[Path]) -> None:
    stored = np.load(reference)
    rows = np.load(tokens)
    print("model                 cells    experts  weights  masks")
    for path in models:
        profile = coe.profile(path, list(rows), n_ctx=WINDOW, n_batch=WINDOW)
        theirs = coe.RoutingProfile(
            profile.architecture,
            "reference",
            profile.fingerprint,
            profile.layers,
            profile.n_tokens,
            stored["histograms"],
            stored["weight_sum"],
        )
        keep = profile.n_experts // 2
        masks = coe.compare(coe.build_mask(profile, keep), coe.build_mask(theirs, keep))
        print(
            f"{path.name:<20}"
            f"  {agreement(profile.histograms, theirs.histograms):7.3%}"
            f"  {agreement(profile.counts, theirs.counts):7.3%}"
            f"  {agreement(profile.weight_sum, theirs.weight_sum):7.3%}"
            f"  {sum(o.shared for o in masks) / (keep * len(masks)):7.2%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writer = commands.add_parser("tokens")
    writer.add_argument("--model", type=Path, required=True)
    writer.add_argument("--out", type=Path, required=True)
    writer.add_argument("--windows", type=int, default=100, help="of each kind")
    keeper = commands.add_parser("fixture")
    keeper.add_argument("--reference", type=Path, required=True)
    keeper.add_argument("--tokens", type=Path, required=True)
    keeper.add_argument("--out", type=Path, required=True)
    comparer = commands.add_parser("compare")
    comparer.add_argument("--reference", type=Path, required=True)
    comparer.add_argument("--tokens", type=Path, required=True)
    comparer.add_argument("models", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "tokens":
        write_tokens(arguments.model, arguments.out, arguments.windows)
    elif arguments.command == "fixture":
        # The vocabulary has 4,096 tokens: 16 bits hold them.
        tokens = np.load(arguments.tokens).astype(np.int16)
        np.savez_compressed(arguments.out, tokens=tokens, **np.load(arguments.reference))
    else:
        compare(arguments.reference, arguments.tokens, arguments.models)


if __name__ == "__main__":
    main()
