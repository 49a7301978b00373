"""How soon the command line answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import coe_native as coe
from benchmarks.side_by_side import Comparison, Target, seconds


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("coe-native")), *map(str, arguments)]


def comparisons(parent: Path) -> Iterator[Comparison]:
    n_vocab = len(coe.MoeModel(parent).metadata("tokenizer.ggml.tokens", []))
    for what, arguments, most in (
        ("coe-native --help", ["--help"], 0.3),
        (f"inspect, {n_vocab:,} tokens of vocabulary", ["inspect", parent], 1.0),
    ):
        line = command(*arguments)
        yield Comparison(
            what,
            "s",
            seconds(lambda line=line: subprocess.run(line, check=True, stdout=subprocess.DEVNULL)),  # type: ignore[misc]
            target=Target(most, False),
        )
