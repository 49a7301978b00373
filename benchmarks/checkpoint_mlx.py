"""Pruned MLX checkpoints: pruning what mlx-lm wrote, against what mlx-lm writes of the pruned original.

    python -m benchmarks.checkpoint_equality DIRECTORY --llama-cpp PATH/TO/llama.cpp
    python -m benchmarks.checkpoint_mlx DIRECTORY

DIRECTORY has the models of `checkpoint_equality`. Each is written by mlx-lm as it is and with 4 bits; both are
pruned, loaded by mlx-lm, and compared by the byte with the pruned original that mlx-lm wrote. Needs
``pip install "mlx[cpu]" mlx-lm``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from mlx_lm import utils

import coe_native as coe

QUANTISED = {"group_size": 32, "bits": 4}


def older_names(source: Path) -> dict[str, Any]:
    """What transformers 5 writes into a config under other names than mlx-lm reads."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    added = {"rope_theta": config.get("rope_parameters", {}).get("rope_theta", 10000.0)}
    if "num_local_experts" in config:
        added["num_experts"] = config["num_local_experts"]
    return added


def write_mlx(source: Path, target: Path, *, quantised: bool) -> None:
    model, config = utils.load_model(source, model_config=older_names(source))
    if quantised:
        model, config = utils.quantize_model(model, config, **QUANTISED)
    utils.save_model(target, model)
    utils.save_config(config, target / "config.json")


def tensors(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in directory.glob("*.safetensors"):
        found |= mx.load(str(path))
    return found


def equal(ours: Any, theirs: Any) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool(mx.array_equal(ours, theirs))


def logits(directory: Path) -> Any:
    model, _ = utils.load_model(directory)
    model.set_dtype(mx.float32)  # what MLX has kernels for on a CPU
    return model(mx.arange(3, 103)[None]).astype(mx.float32)


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
def main(directory: Path) -> None:
    print("| model | bits | tensors | equal | config | equal logits | routers compared |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for work in sorted(path.parent for path in directory.glob("*/mask.json")):
        mask = coe.ExpertMask.load(work / "mask.json")
        for quantised in (False, True):
            paths = {part: work / f"mlx-{part}" for part in ("parent", "pruned", "expected")}
            for path in paths.values():
                shutil.rmtree(path, ignore_errors=True)
            try:
                write_mlx(work / "parent", paths["parent"], quantised=quantised)
            except Exception as error:  # whatever its code for this architecture raises
                print(f"| {work.name} | mlx-lm does not load the parent: {type(error).__name__} |", flush=True)
                break
            done = coe.prune_checkpoint(paths["parent"], mask, paths["pruned"])
            write_mlx(work / "pruned", paths["expected"], quantised=quantised)
            ours, theirs = tensors(paths["pruned"]), tensors(paths["expected"])
            n_equal = sum(key in theirs and equal(value, theirs[key]) for key, value in ours.items())
            configs = [json.loads((paths[part] / "config.json").read_text()) for part in ("pruned", "expected")]
            same = bool(mx.array_equal(logits(paths["pruned"]), logits(paths["expected"])))
            print(
                f"| {work.name} | {4 if quantised else 16} | {len(ours.keys() | theirs.keys())} | {n_equal} "
                f"| {'equal' if configs[0] == configs[1] else 'differs'} | {'yes' if same else 'no'} "
                f"| {'yes' if done.checked else 'no'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
