"""Runs a target without a fuzzer: all seeds, then changed ones for some seconds.

cd tests && python -m support.fuzz.replay model 60
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from support.fuzz.mutation import Mutator
from support.fuzz.targets import TARGETS

_KINDS = {"model": "gguf", "profile": "gguf", "mask": "json", "judged": "json"}
# Where the first byte says of which kind the others are.
_KINDS_BY_BYTE = {
    "corpus": {0: "jsonl", 1: "npy"},
    "imported": {0: "pickle", 1: "zip", 2: "gguf"},
}


def replay(name: str, seconds: float) -> int:
    """How many inputs were run. An input that a target must not stumble over is left in ``NAME.failed``."""
    target = TARGETS[name]
    seeds = [path.read_bytes() for path in target.seed_files()]
    mutator = Mutator(2026)
    end = time.monotonic() + seconds
    n_inputs = 0
    data = b""
    try:
        while n_inputs < len(seeds) or time.monotonic() < end:
            data = seeds[n_inputs] if n_inputs < len(seeds) else _changed(mutator, name, seeds)
            target.run(data)
            n_inputs += 1
    except BaseException:
        Path(f"{name}.failed").write_bytes(data)
        raise
    return n_inputs


def _changed(mutator: Mutator, name: str, seeds: list[bytes]) -> bytes:
    if name not in _KINDS_BY_BYTE:
        return mutator.change(seeds, _KINDS[name])
    byte, kind = mutator.random.choice(list(_KINDS_BY_BYTE[name].items()))
    return bytes([byte]) + mutator.change([seed[1:] for seed in seeds if seed[0] == byte], kind)


if __name__ == "__main__":
    print(replay(sys.argv[1], float(sys.argv[2])), "inputs")
