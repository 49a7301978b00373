"""`prune` and `verify` of a checkpoint of several gigabytes beside `cp` and `cat`: time, and the most memory.

    python -m benchmarks.checkpoint_speed DIRECTORY

DIRECTORY needs room for the checkpoint (6.7 GB by default) and its half, twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import coe_native as coe

WIDTH, HIDDEN, EXPERTS = 1024, 352, 128
LAYERS_IN_A_FILE = 6


def write_checkpoint(directory: Path, n_layers: int) -> None:
    """Qwen3-MoE's names and shapes in BF16, with random bytes."""
    directory.mkdir()
    numbers = np.random.default_rng(0).integers(0, 0x7F80, WIDTH * HIDDEN + 2048, np.uint16)  # finite in BF16
    random_bytes = numbers.tobytes()
    weight_map: dict[str, str] = {}
    for first in range(0, n_layers, LAYERS_IN_A_FILE):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + LAYERS_IN_A_FILE, n_layers)):
            module = f"model.layers.{layer}.mlp"
            shapes[f"{module}.gate.weight"] = EXPERTS, WIDTH
            for expert in range(EXPERTS):
                for part in ("gate_proj", "up_proj"):
                    shapes[f"{module}.experts.{expert}.{part}.weight"] = HIDDEN, WIDTH
                shapes[f"{module}.experts.{expert}.down_proj.weight"] = WIDTH, HIDDEN
        header, at = {}, 0
        for name, shape in shapes.items():
            size = 2 * shape[0] * shape[1]
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        file = directory / f"model-{first:05}.safetensors"
        with file.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for number, shape in enumerate(shapes.values()):
                start = 2 * (number % 2048)
                out.write(random_bytes[start : start + 2 * shape[0] * shape[1]])
        weight_map |= dict.fromkeys(shapes, file.name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"num_hidden_layers": n_layers, "num_experts": EXPERTS, "num_experts_per_tok": 8}
    (directory / "config.json").write_text(json.dumps(config))


def run(*line: object) -> tuple[float, float]:
    """Seconds that a command takes until its output is on the disk, and the most megabytes of its memory."""
    started = time.monotonic()
    process = subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = max(most, int(found[1]) / 1000 if (found := re.search(r"VmRSS:\s*(\d+)", status)) else 0.0)
        except OSError:
            break
        time.sleep(0.01)
    if process.wait():
        raise SystemExit(f"{line[0]} failed")
    os.sync()
    return time.monotonic() - started, most


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--layers", default=24, show_default=True)
@click.option("--runs", default=3, show_default=True)
def main(directory: Path, layers: int, runs: int) -> None:
    parent, out, copied, mask = (directory / name for name in ("parent", "out", "copied", "mask.json"))
    if not parent.exists():
        write_checkpoint(parent, layers)
    drawn = np.random.default_rng(1)
    kept = {layer: tuple(sorted(map(int, drawn.permutation(EXPERTS)[: EXPERTS // 2]))) for layer in range(layers)}
    coe.ExpertMask("unknown", "unknown", EXPERTS, EXPERTS // 2, kept).save(mask)
    command = [sys.executable, "-m", "coe_native"]
    files = sorted(parent.glob("*.safetensors"))
    measures: dict[str, Callable[[], tuple[float, float]]] = {
        "prune": lambda: run(*command, "prune", parent, "--mask", mask, "-o", out),
        "cp of as many bytes": lambda: run("cp", *files[::2], copied),
        "verify": lambda: run(*command, "verify", out, "--parent", parent, "--mask", mask),
        "cat of both": lambda: run("cat", *files, *(out / file.name for file in files)),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in measures}
    for _ in range(runs):
        for path in (out, copied):
            shutil.rmtree(path, ignore_errors=True)
        copied.mkdir()
        for name, measure in measures.items():
            found[name].append(measure())
    print(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB, medians of {runs} runs")
    print("| what | time | memory |\n| --- | --- | --- |")
    for name, values in found.items():
        seconds = statistics.median(second for second, _ in values)
        print(f"| {name} | {seconds:.1f} s | {max(memory for _, memory in values):.0f} MB |")


if __name__ == "__main__":
    main()
